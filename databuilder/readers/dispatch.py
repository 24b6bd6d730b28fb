"""Read input splits of plain text, JSON lines or Parquet as batches of document pieces.

    sources ──cut_into_splits──▶ splits ──read_split──▶ [[Piece, Piece, …], …]

Together the splits yield every document of the sources once and in order, whatever the size of the splits.
"""

import codecs
from collections.abc import Callable, Iterator
from itertools import chain

from databuilder.pieces import Batch, Reading, TextCounts
from databuilder.readers.jsonl import read_json_lines
from databuilder.readers.text import DocumentCutter, scan_start, skip_to_first_document
from databuilder.source_file import InputSplit
from transformerlm.utils import text_files as corpus
from transformerlm.utils.errors import DataError
from transformerlm.utils.text_files import read_bytes, read_range

OnRead = Callable[[int], None]
"""Called with how many of a split's `num_bytes` have been read so far."""


def read_split(
    split: InputSplit, reading: Reading, counts: TextCounts, on_read: OnRead | None = None, *, compiled: bool = False
) -> Iterator[Batch]:
    """Yield batches of the documents that begin in `split`, in order, and add the text read and used to `counts`.

    In plain text, a document is the text between two separators, without line breaks at either end, and is read in
    bounded memory; a leading byte-order mark is dropped. Records of JSON lines and Parquet are parsed whole, and their
    text is not changed. Empty documents are left out. If `compiled`, a kernel cuts plain text, with the same result.

    Raises `DataError` with name and position if a source is missing or truncated, is not UTF-8 (policy "strict"), or a
    record lacks the text field; `MissingDependencyError` if a package is missing.
    """
    if split.source.format == "parquet":
        from databuilder.readers.parquet import read_row_groups

        yield from read_row_groups(split, reading, counts, on_read)
        return
    separator = b"\n" if split.source.format == "jsonl" else reading.separator.encode("utf-8")
    start = scan_start(separator, split.begin, lambda low, high: read_range(split.source.name, low, high))
    blocks = _blocks(split, start, on_read)
    begin = split.begin
    if begin > 0:
        first = skip_to_first_document(blocks, separator, start, begin, split.end)
        if first is None:
            return
        begin, rest = first
        blocks = chain([rest], blocks)
    elif head := next(blocks, b""):
        text = head.removeprefix(codecs.BOM_UTF8)
        begin = len(head) - len(text)
        blocks = chain([text] if text else [], blocks)
        if split.source.format == "text":
            counts.bytes_read += begin
            counts.bytes_separators += begin
    batches: Iterator[Batch]
    if split.source.format == "jsonl":
        batches = read_json_lines(blocks, split.source.name, reading, counts, begin=begin, end=split.end)
    else:
        cutter = DocumentCutter(split.source.name, reading, counts, begin=begin, end=split.end, compiled=compiled)
        batches = cutter.cut(blocks)
    yield from filter(len, batches)


def _blocks(split: InputSplit, start: int, on_read: OnRead | None) -> Iterator[bytes]:
    """Yield the text of a split's source from `start` to its end, in blocks of about `READ_BYTES`.

    The caller stops at the end of the split. Raises `DataError` if the source does not have its recorded size.
    """
    name, num_bytes = split.source.name, split.source.num_bytes
    place = start

    def report(read: int) -> None:
        nonlocal place
        place = read
        if on_read is not None:
            on_read(min(max(0, place - split.begin), split.num_bytes or place))

    waiting: list[bytes] = []
    size = 0
    for block in read_bytes(name, report, begin=start, keep_mark=True):
        waiting.append(block)
        size += len(block)
        if size >= corpus.READ_BYTES:
            yield b"".join(waiting)  # does not copy a single block
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
    if num_bytes and place != num_bytes:
        raise DataError(
            f"{name}: ends at byte {place}, not at {num_bytes}: it is truncated or has changed; download it again"
        )
