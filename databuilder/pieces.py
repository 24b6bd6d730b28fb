"""The output of readers: documents as pieces of UTF-8, and counts of the text used and left out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from transformerlm.hparams import END_OF_TEXT

PIECE_BYTES = 1 << 20
"""A document longer than this is read in several pieces, so that memory is bounded whatever its size."""

ErrorPolicy = Literal["strict", "replace", "skip"]
"""How to handle text that is not UTF-8: raise an error, replace it by U+FFFD, or leave the document out."""


@dataclass(frozen=True)
class Reading:
    """Settings for reading sources."""

    separator: str = END_OF_TEXT
    """Separates the documents of a text."""
    text_field: str = "text"
    """Holds a document's text in JSON lines and Parquet."""
    errors: ErrorPolicy = "strict"
    skip_null: bool = False
    """Leave out records whose text is null, instead of raising an error."""


class End(Enum):
    """How a piece ends."""

    OPEN = "open"  # the next piece continues the document
    FINAL = "final"  # the document is complete
    DROPPED = "dropped"  # the whole document, earlier pieces included, must not be used


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
        """Concatenate documents."""
        return cls(b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64))

    def __iter__(self) -> Iterator[Piece]:
        return (Piece(self.data[begin:end], End.FINAL) for begin, end in pairwise([0, *self.ends.tolist()]))

    def __len__(self) -> int:
        return len(self.ends)


Batch = Documents | list[Piece]
"""Documents that were read together."""


@dataclass
class TextCounts:
    """Bytes and documents read, used, and left out by reason; bytes are counted after decompression.

    `bytes_read` is the sum of the other byte counts. In JSON lines and Parquet, only the text field is counted.
    """

    bytes_read: int = 0
    bytes_used: int = 0
    bytes_separators: int = 0
    """Separators, and the line breaks next to them."""
    bytes_not_utf8: int = 0
    """In documents left out because they are not UTF-8."""
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
        """Return the counts from the output of `to_json`."""
        return cls(**counts)
