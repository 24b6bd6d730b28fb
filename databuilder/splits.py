"""Cut sources into input splits; one task reads one split.

    a.txt            b.txt.gz   c.parquet
    [ 0 ][ 1 ][ 2 ]  [   3   ]  [ 4 ][ 5 ]     bytes of plain text, whole compressed files, row groups of Parquet

A split of plain text or JSON lines owns the documents that begin in its range of bytes; `readers` find them. The splits
depend on the sources alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from databuilder.readers.parquet import cut_row_groups
from databuilder.source_file import InputSplit, SourceFile
from transformerlm.utils.text_files import reads_ranges

SPLIT_BYTES = 64 << 20


def cut_into_splits(files: Iterable[SourceFile], *, split_bytes: int = SPLIT_BYTES) -> list[InputSplit]:
    """Return the splits of `files`, in order, each with about `split_bytes` of stored data.

    A compressed file is one split, and so is a file whose server does not support range requests. Raises `DataError` if
    a Parquet file has no readable footer.
    """
    splits = (split for file in files for split in _splits_of(file, split_bytes))
    return [replace(split, number=number) for number, split in enumerate(splits)]


def _splits_of(file: SourceFile, split_bytes: int) -> Iterator[InputSplit]:
    if file.format == "parquet":
        for begin, end, num_bytes in cut_row_groups(file, split_bytes):
            yield InputSplit(file, 0, begin, end, num_bytes)
    elif file.num_bytes <= split_bytes or not reads_ranges(file.name):
        yield InputSplit(file, 0, num_bytes=file.num_bytes)
    else:
        for begin in range(0, file.num_bytes, split_bytes):
            end = min(begin + split_bytes, file.num_bytes)
            yield InputSplit(file, 0, begin, end, end - begin)
