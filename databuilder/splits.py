"""Sources cut into parts, each of which one task reads.

    a.txt            b.txt.gz   c.parquet
    [ 0 ][ 1 ][ 2 ]  [   3   ]  [ 4 ][ 5 ]     bytes of plain text, whole compressed files, row groups of Parquet

A part of plain text or JSON lines owns the documents that begin in its range of bytes; `reading` finds them. The parts
are a function of the sources alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from databuilder.sources import SourceFile
from transformerlm.utils.text_files import reads_ranges

PART_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """A stretch of a source."""

    source: SourceFile
    number: int
    """Among all parts."""
    begin: int = 0
    """Byte of plain text or JSON lines, row group of Parquet."""
    end: int = -1
    """Likewise, exclusive; -1: to the end."""
    num_bytes: int = 0
    """Share of the source's size, as stored; 0 if that is not known."""


def cut_into_parts(files: Iterable[SourceFile], *, part_bytes: int = PART_BYTES) -> list[Part]:
    """Return the parts of `files`, in order, of about `part_bytes` each as stored.

    A compressed file is one part, as is one whose server cannot send a range of it. Raises `DataError` if a Parquet
    file has no readable footer.
    """
    parts = (part for file in files for part in _parts_of(file, part_bytes))
    return [replace(part, number=number) for number, part in enumerate(parts)]


def _parts_of(file: SourceFile, part_bytes: int) -> Iterator[Part]:
    if file.format == "parquet":
        from databuilder.readers.parquet import cut_row_groups

        for begin, end, num_bytes in cut_row_groups(file, part_bytes):
            yield Part(file, 0, begin, end, num_bytes)
    elif file.num_bytes <= part_bytes or not reads_ranges(file.name):
        yield Part(file, 0, num_bytes=file.num_bytes)
    else:
        for begin in range(0, file.num_bytes, part_bytes):
            end = min(begin + part_bytes, file.num_bytes)
            yield Part(file, 0, begin, end, end - begin)
