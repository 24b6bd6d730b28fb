"""Text from token files for a terminal: document ends are marked, control characters are escaped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformerlm.token_files.stream import TokenStream
    from transformerlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Passage:
    """A range of ids of a token file as text, split where documents end."""

    path: Path
    begin: int
    end: int
    begins_inside: bool
    """Whether the first document started before `begin`."""
    documents: tuple[tuple[str, bool], ...]
    """(text, whether the document ends there) for each document."""

    @classmethod
    def read(
        cls,
        path: Path,
        stream: "TokenStream",
        tokenizer: "Tokenizer",
        *,
        begin: int,
        num_tokens: int,
        end_of_text_id: int | None,
    ) -> "Passage":
        """Decode up to `num_tokens` ids, starting at `begin`."""
        ids = stream[begin : begin + num_tokens].tolist()
        before = stream[max(0, begin - 1) : begin].tolist()
        documents: list[tuple[str, bool]] = []
        first = 0
        for place, token_id in enumerate(ids):
            if token_id == end_of_text_id:
                documents.append((tokenizer.decode(ids[first:place]), True))
                first = place + 1
        if first < len(ids):
            documents.append((tokenizer.decode(ids[first:]), False))
        return cls(path, begin, begin + len(ids), bool(before) and before[0] != end_of_text_id, tuple(documents))

    def to_json(self) -> dict[str, Any]:
        """Return the passage as plain values, with unescaped text."""
        return {
            "data": str(self.path),
            "begin": self.begin,
            "end": self.end,
            "begins_inside": self.begins_inside,
            "documents": [{"text": text, "ends": ends} for text, ends in self.documents],
        }

    def lines(self, title: str) -> Iterator[str]:
        """Yield lines for a terminal; text lines start with "│"."""
        yield f"── {title}: ids {self.begin:,} to {self.end - 1:,} of {self.path}"
        if self.begins_inside:
            yield "… inside a document"
        for text, ends in self.documents:
            yield from (f"│ {line}" for line in visible(text).split("\n"))
            yield "└─ end of document" if ends else "… goes on"


def visible(text: str) -> str:
    """Return `text` with unprintable characters except newlines escaped as in Python: `\\x1b`, `\\u202e`.

    Some of these characters control the terminal; the others would be invisible.
    """
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
