"""Text out of token files for a terminal: ends of documents are marked, and nothing in it moves the cursor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformerlm.token_files.stream import TokenStream
    from transformerlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Passage:
    """Some ids of a token file as text, cut where documents end."""

    path: Path
    begin: int
    end: int
    begins_inside: bool
    """Whether the first document has begun before."""
    documents: tuple[tuple[str, bool], ...]
    """Texts, each with whether its document ends there."""

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
        """Decode up to `num_tokens` ids from `begin` on."""
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
        """Return the passage as plain values, texts as they are."""
        return {
            "data": str(self.path),
            "begin": self.begin,
            "end": self.end,
            "begins_inside": self.begins_inside,
            "documents": [{"text": text, "ends": ends} for text, ends in self.documents],
        }

    def lines(self, title: str) -> Iterator[str]:
        """Yield lines for a terminal: those of the text begin with "│"."""
        yield f"── {title}: ids {self.begin:,} to {self.end - 1:,} of {self.path}"
        if self.begins_inside:
            yield "… inside a document"
        for text, ends in self.documents:
            yield from (f"│ {line}" for line in visible(text).split("\n"))
            yield "└─ end of document" if ends else "… goes on"


def visible(text: str) -> str:
    """Return `text` with what is not printed as itself, but for line ends, written as in Python: `\\x1b`, `\\u202e`.

    A terminal acts on some of these characters, and a reader would not see the others.
    """
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
