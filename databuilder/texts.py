"""The documents of sources as a stream of whole texts, for evaluation."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from databuilder.build_directory import Log
from databuilder.pieces import End, Reading, TextCounts
from databuilder.readers.dispatch import read_split
from databuilder.source_file import SourceFile
from databuilder.sources import log_empty_sources
from databuilder.splits import cut_into_splits


def read_texts(
    sources: Sequence[SourceFile],
    reading: Reading,
    counts: TextCounts,
    on_read: Callable[[int], None] | None = None,
    log: Log | None = None,
) -> Iterator[bytes]:
    """Yield the documents of `sources` in order, the same ones that a build encodes, each held in memory as a whole.

    `on_read` is called with the number of stored bytes read so far, over all sources. At the end, `log` is called with
    a line that names sources without any document. Raises the errors of `read_split`.
    """
    before = 0
    num_documents = Counter[str]()
    for split in cut_into_splits(sources):

        def report(num_bytes: int, before: int = before) -> None:
            if on_read is not None:
                on_read(before + num_bytes)

        pieces: list[bytes] = []
        documents_before = counts.documents_used
        for batch in read_split(split, reading, counts, report):
            for piece in batch:
                pieces.append(piece.text)
                if piece.end is End.FINAL:
                    yield b"".join(pieces)
                if piece.end is not End.OPEN:
                    pieces = []
        before += split.num_bytes
        num_documents[split.source.name] += counts.documents_used - documents_before
    if log is not None:
        log_empty_sources(sources, num_documents, log)
