"""The documents of sources as texts, one after another: for whoever encodes them in another way than a build."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from databuilder.build_directory import Say
from databuilder.pieces import End, Reading, TextCounts
from databuilder.readers.dispatch import read_part
from databuilder.sources import SourceFile, say_empty
from databuilder.splits import cut_into_parts


def read_texts(
    sources: Sequence[SourceFile],
    reading: Reading,
    counts: TextCounts,
    on_read: Callable[[int], None] | None = None,
    say: Say | None = None,
) -> Iterator[bytes]:
    """Yield the documents of `sources`, in order, whole; the same that a build encodes.

    A document is in memory as a whole. `on_read` is told how many bytes of all sources, as stored, have been read.
    `say` is told in the end which sources hold no document. Errors as of `read_part`.
    """
    before = 0
    num_documents = Counter[str]()
    for part in cut_into_parts(sources):

        def report(num_bytes: int, before: int = before) -> None:
            if on_read is not None:
                on_read(before + num_bytes)

        pieces: list[bytes] = []
        documents_before = counts.documents_used
        for batch in read_part(part, reading, counts, report):
            for piece in batch:
                pieces.append(piece.text)
                if piece.end is End.KEPT:
                    yield b"".join(pieces)
                if piece.end is not End.OPEN:
                    pieces = []
        before += part.num_bytes
        num_documents[part.source.name] += counts.documents_used - documents_before
    if say is not None:
        say_empty(sources, num_documents, say)
