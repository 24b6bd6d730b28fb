"""What reading gives: documents as pieces of UTF-8, and counts of what was used and what was not."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from transformerlm.hparams import END_OF_TEXT

PIECE_BYTES = 1 << 20
"""A document longer than this comes in several pieces, so that memory is bounded whatever its size."""

ErrorPolicy = Literal["strict", "replace", "skip"]
"""What is done about text that is not UTF-8: an error, U+FFFD in its place, or the document is left out."""


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    separator: str = END_OF_TEXT
    """Stands between two documents of a text."""
    text_field: str = "text"
    """Holds a document's text in JSON lines and Parquet."""
    errors: ErrorPolicy = "strict"
    skip_null: bool = False
    """Leave out records whose text is null; else they are an error."""


class End(Enum):
    """How a piece ends."""

    OPEN = "open"  # the next piece goes on with the document
    KEPT = "kept"  # the document is complete
    DROPPED = "dropped"  # all of the document, with the pieces before this, is not to be used


class Piece(NamedTuple):
    """A document, or a part of a long one; valid UTF-8, never cut inside a character."""

    text: bytes
    end: End


@dataclass(frozen=True)
class Documents:
    """Whole documents, one after another: valid UTF-8, none of them empty. Iterating gives a `Piece` each."""

    data: bytes
    ends: npt.NDArray[np.int64]

    @classmethod
    def joined(cls, texts: Sequence[bytes]) -> Self:
        """Put documents one after another."""
        return cls(b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64))

    def __iter__(self) -> Iterator[Piece]:
        return (Piece(self.data[begin:end], End.KEPT) for begin, end in pairwise([0, *self.ends.tolist()]))

    def __len__(self) -> int:
        return len(self.ends)


Batch = Documents | list[Piece]
"""Documents that were read together."""


@dataclass
class TextCounts:
    """What became of the text that was read; bytes are as read, after decompression.

    `bytes_read` is the sum of the other bytes. Of JSON lines and Parquet, only the text field counts as text.
    """

    bytes_read: int = 0
    bytes_used: int = 0
    bytes_separators: int = 0
    """Separators, and the line breaks next to them."""
    bytes_not_utf8: int = 0
    """Of documents left out because they are not UTF-8."""
    documents_used: int = 0
    documents_empty: int = 0
    documents_not_utf8: int = 0
    characters_replaced: int = 0
    documents_null: int = 0
    """Records left out because their text is null."""

    def add(self, other: "TextCounts") -> None:
        """Add `other` to this."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, counts: dict[str, Any]) -> "TextCounts":
        """Return what `to_json` was of."""
        return cls(**counts)
