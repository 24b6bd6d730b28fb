"""Reads parts of sources: plain text, JSON lines or Parquet, as batches of pieces of documents.

    sources ──cut_into_parts──▶ parts ──read_part──▶ [[Piece, Piece, …], …]

The documents of all parts, one part after the other, are those of the sources, whatever the size of the parts.
"""

import codecs
from collections.abc import Callable, Iterator
from itertools import chain

from databuilder.pieces import PIECE_BYTES, Batch, Documents, End, ErrorPolicy, Piece, Reading, TextCounts
from databuilder.readers.jsonl import read_json_lines
from databuilder.readers.text import DocumentCutter, scan_start, skip_to_first_document
from databuilder.splits import Part
from transformerlm.utils import text_files as corpus
from transformerlm.utils.errors import DataError
from transformerlm.utils.text_files import read_bytes, read_range

__all__ = ["Batch", "Documents", "End", "ErrorPolicy", "PIECE_BYTES", "Piece", "Reading", "TextCounts", "read_part"]

OnRead = Callable[[int], None]
"""Told how many of a part's `num_bytes` have been read so far."""


def read_part(
    part: Part, reading: Reading, counts: TextCounts, on_read: OnRead | None = None, *, compiled: bool = False
) -> Iterator[Batch]:
    """Yield the documents that begin in `part`, in order, some at a time, and add to `counts` what becomes of the text.

    Of a text a document is what stands between two separators, without the line breaks at both ends, and memory is
    bounded whatever its size. A byte-order mark is no part of the text. Records of JSON lines and Parquet are parsed
    whole, and their text is taken as it is. Empty documents are left out. If `compiled`, a kernel cuts plain text, to
    the same documents.

    Raises `DataError` with name and place if a source is missing or cut off, is not UTF-8 (policy "strict"), or a
    record lacks the text field; `MissingDependencyError` if a package is missing.
    """
    if part.source.format == "parquet":
        from databuilder.readers.parquet import read_row_groups

        yield from read_row_groups(part, reading, counts, on_read)
        return
    separator = b"\n" if part.source.format == "jsonl" else reading.separator.encode("utf-8")
    start = scan_start(separator, part.begin, lambda low, high: read_range(part.source.name, low, high))
    blocks = _blocks(part, start, on_read)
    begin = part.begin
    if begin > 0:
        first = skip_to_first_document(blocks, separator, start, begin, part.end)
        if first is None:
            return
        begin, rest = first
        blocks = chain([rest], blocks)
    elif head := next(blocks, b""):
        text = head.removeprefix(codecs.BOM_UTF8)
        begin = len(head) - len(text)
        blocks = chain([text] if text else [], blocks)
        if part.source.format == "text":
            counts.bytes_read += begin
            counts.bytes_separators += begin
    batches: Iterator[Batch]
    if part.source.format == "jsonl":
        batches = read_json_lines(blocks, part.source.name, reading, counts, begin=begin, end=part.end)
    else:
        cutter = DocumentCutter(part.source.name, reading, counts, begin=begin, end=part.end, compiled=compiled)
        batches = cutter.cut(blocks)
    yield from filter(len, batches)


def _blocks(part: Part, start: int, on_read: OnRead | None) -> Iterator[bytes]:
    """Yield the text of a part's source from `start` on in blocks of `corpus.READ_BYTES`, about; the caller stops.

    Raises `DataError` if the source turns out to be of another size than it was.
    """
    name, num_bytes = part.source.name, part.source.num_bytes
    place = start

    def report(read: int) -> None:
        nonlocal place
        place = read
        if on_read is not None:
            on_read(min(max(0, place - part.begin), part.num_bytes or place))

    waiting: list[bytes] = []
    size = 0
    for block in read_bytes(name, report, begin=start, keep_mark=True):
        waiting.append(block)
        size += len(block)
        if size >= corpus.READ_BYTES:
            yield b"".join(waiting)  # of one, that one
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
    if num_bytes and place != num_bytes:
        raise DataError(f"{name}: ends at byte {place} and not at {num_bytes}; it was cut off or changed: fetch it")
