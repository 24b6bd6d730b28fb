r"""Cut plain text into documents at the separator, in memory that does not depend on the documents' size.

    …end of one<|endoftext|>\nTwo.\n<|endoftext|>\nThree, which is long and g | oes on<|end     blocks as they are read
          ▲ the split begins    [Two.]final       [Three, which is long and g]open [oes on]final  pieces

A document is the text between two separators, without line breaks at either end; empty ones are left out. An input
split owns the documents that begin in its range, so it reads past its end to finish the last of them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, repeat
from typing import NamedTuple

import numpy as np

from databuilder import pieces
from databuilder.pieces import Batch, Documents, End, Piece, Reading, TextCounts
from databuilder.utf8 import Utf8, is_valid

LINE_BREAKS = b"\r\n"

_LOOK_BACK = 1 << 12


class DocumentCutter:
    """Cuts the bytes of a text, which begin at a document, into pieces of documents."""

    def __init__(
        self,
        name: str,
        reading: Reading,
        counts: TextCounts,
        *,
        begin: int = 0,
        end: int = -1,
        compiled: bool = False,
    ) -> None:
        """The bytes begin at offset `begin` of the text `name`; documents that begin at `end` or later are left out.

        If `compiled`, a kernel does the work, with the same result.
        """
        self._separator = reading.separator.encode("utf-8")
        self._packer = _Packer(self._separator) if compiled else None
        self._utf8 = Utf8(name, reading.errors, counts)
        self._counts = counts
        self._place = begin  # offset of the first byte that is not cut yet
        self._end = end

    def cut(self, blocks: Iterable[bytes]) -> Iterator[Batch]:
        """Yield batches of pieces, about one per block. Raises the errors of `Utf8.check`."""
        gap = len(self._separator)
        rest = b""  # the bytes after the last separator
        long: _LongDocument | None = None
        for block in blocks:
            if long is not None:
                rest += block
                found = rest.find(self._separator)
                if found < 0:
                    cut = max(0, len(rest) - gap + 1)
                    yield long.add(rest[:cut])
                    rest = rest[cut:]
                    continue
                yield long.add(rest[:found], last=True)
                self._skip(gap)
                self._place = long.place + gap
                long, rest, block = None, b"", rest[found + gap :]
            elif self._lies_across(rest, block):
                rest, block = b"", rest + block
            if self._is_past_end():
                return
            batch, rest = self._cut_block(rest, block)
            yield batch
            if self._is_past_end():
                return
            cut = len(rest) - gap + 1  # a separator may begin after it
            if cut > pieces.PIECE_BYTES:
                long = _LongDocument(self._utf8, self._counts, self._place)
                yield long.add(rest[:cut])
                rest = rest[cut:]
        if long is not None:
            yield long.add(rest, last=True)
        elif rest.strip(LINE_BREAKS):
            yield self._whole_documents([rest], 0)
        else:  # the last separator ended the text; no document follows it
            self._skip(len(rest))

    def _cut_block(self, rest: bytes, block: bytes) -> tuple[Batch, bytes]:
        """Return the documents that end in `rest + block`, and the bytes after the last of them."""
        if self._packer is not None:
            data = rest + block
            limit = self._end - self._place if self._end >= 0 else len(data)
            packed = self._packer.pack(data, limit)
            if packed is not None:
                return self._count_packed(packed), data[packed.num_bytes :]
            rest, block = b"", data  # the code below locates the bad bytes and applies the error policy
        documents = block.split(self._separator)
        documents[0] = rest + documents[0]
        rest = documents.pop()
        return self._whole_documents(documents, len(self._separator)), rest

    def _count_packed(self, packed: "_Packed") -> Documents:
        counts, num_used = self._counts, len(packed.documents.data)
        counts.bytes_read += packed.num_bytes
        counts.bytes_used += num_used
        counts.bytes_separators += packed.num_bytes - num_used
        counts.documents_used += len(packed.documents)
        counts.documents_empty += packed.num_empty
        self._place += packed.num_bytes
        return packed.documents

    def _lies_across(self, rest: bytes, block: bytes) -> bool:
        """Return whether a separator begins in `rest` and ends in `block`."""
        reach = len(self._separator) - 1
        return reach > 0 and self._separator in rest[-reach:] + block[:reach]

    def _is_past_end(self) -> bool:
        return 0 <= self._end <= self._place

    def _skip(self, num_bytes: int) -> None:
        """Count a separator."""
        self._counts.bytes_read += num_bytes
        self._counts.bytes_separators += num_bytes

    def _whole_documents(self, documents: list[bytes], gap: int) -> list[Piece]:
        """Return the next `documents`, each followed by a separator of `gap` bytes, that the split owns."""
        size = sum(map(len, documents)) + gap * len(documents)
        if 0 <= self._end < self._place + size:
            begins = accumulate((len(document) + gap for document in documents), initial=self._place)
            documents = [document for document, begin in zip(documents, begins, strict=False) if begin < self._end]
            size = sum(map(len, documents)) + gap * len(documents)
        texts = [document.strip(LINE_BREAKS) for document in documents]
        num_bytes = sum(map(len, texts))
        counts = self._counts
        counts.bytes_read += size
        counts.bytes_separators += size - num_bytes
        counts.documents_empty += texts.count(b"")
        if not all(map(bytes.isascii, texts)) and not all(map(is_valid, texts)):
            texts, dropped_bytes = self._valid_texts(documents, gap)
            num_bytes -= dropped_bytes
        texts = list(filter(None, texts))
        counts.bytes_used += num_bytes
        counts.documents_used += len(texts)
        self._place += size
        return list(map(tuple.__new__, repeat(Piece), zip(texts, repeat(End.FINAL))))  # half the time of `Piece`

    def _valid_texts(self, documents: list[bytes], gap: int) -> tuple[list[bytes], int]:
        """Return the texts of `documents` that the error policy accepts, and the bytes of the others."""
        texts, dropped_bytes = [], 0
        place = self._place
        for document in documents:
            text = document.strip(LINE_BREAKS)
            valid, _ = self._utf8.check(text, place + document.find(text))
            if valid is None:
                dropped_bytes += len(text)
                self._counts.documents_not_utf8 += 1
            else:
                texts.append(valid)
            place += len(document) + gap
        self._counts.bytes_not_utf8 += dropped_bytes
        return texts, dropped_bytes


class _Packed(NamedTuple):
    documents: Documents
    num_empty: int
    num_bytes: int
    """Bytes of the source used, separators included."""


class _Packer:
    """Cuts text into documents by a compiled kernel."""

    def __init__(self, separator: bytes) -> None:
        self._separator = np.frombuffer(separator, np.uint8)
        self._packed = np.empty(0, np.uint8)
        self._ends = np.empty(0, np.int64)

    def pack(self, data: bytes, limit: int) -> _Packed | None:
        """Return the documents that end in `data` and begin before `limit`; None if one is not UTF-8."""
        from transformerlm.tokenizer.kernels.cutter import cut_documents  # imported here: numba loads slowly

        if len(self._packed) < len(data):
            self._packed = np.empty(len(data), np.uint8)
            self._ends = np.empty(len(data) // len(self._separator), np.int64)
        count, num_empty, num_bytes, is_valid = cut_documents(
            np.frombuffer(data, np.uint8), self._separator, limit, self._packed, self._ends
        )
        if not is_valid:
            return None
        ends = self._ends[:count].copy()
        return _Packed(Documents(self._packed[: ends[-1] if count else 0].tobytes(), ends), num_empty, num_bytes)


class _LongDocument:
    """A document that arrives in pieces; trailing line breaks are held back until more text follows them."""

    def __init__(self, utf8: Utf8, counts: TextCounts, place: int) -> None:
        self._utf8 = utf8
        self._counts = counts
        self._held = b""  # trailing line breaks, or the first bytes of a character
        self._num_bytes = 0  # without line breaks at either end
        self._dropped = False
        self.place = place
        """Offset of the first byte after the bytes added so far."""

    def add(self, data: bytes, *, last: bool = False) -> list[Piece]:
        """Return the pieces that are final once `data` is added; with `last`, `data` ends the document."""
        self._counts.bytes_read += len(data)
        self.place += len(data)
        data = self._held + data
        if not self._num_bytes:
            begun = data.lstrip(LINE_BREAKS)
            self._counts.bytes_separators += len(data) - len(begun)
            data = begun
        body = data.rstrip(LINE_BREAKS)
        text, used, was_dropped = None, len(body), self._dropped
        if not was_dropped:
            text, used = self._utf8.check(body, self.place - len(data), final=last or len(body) < len(data))
            self._dropped = text is None
        self._num_bytes += used
        self._held = data[used:]
        if last:
            self._count()
        if text is None:
            return [] if was_dropped else [Piece(b"", End.DROPPED)]
        return [Piece(text, End.FINAL if last else End.OPEN)] if self._num_bytes else []

    def _count(self) -> None:
        counts = self._counts
        counts.bytes_separators += len(self._held)
        if self._dropped:
            counts.bytes_not_utf8 += self._num_bytes
            counts.documents_not_utf8 += 1
        elif self._num_bytes:
            counts.bytes_used += self._num_bytes
            counts.documents_used += 1
        else:
            counts.documents_empty += 1


def scan_start(separator: bytes, begin: int, read: Callable[[int, int], bytes]) -> int:
    """Return an offset from which a search finds the same separators around `begin` as a search of the whole text.

    `read` returns the bytes of a range of the text. If a separator can overlap itself, as a row of dashes can, the
    earlier match wins; so no match may span the returned offset.
    """
    gap = len(separator)
    latest = max(0, begin - gap)
    if not any(separator.startswith(separator[shift:]) for shift in range(1, gap)):
        return latest
    reach = _LOOK_BACK
    while True:
        low = max(0, latest - reach)
        data, start = read(low, begin), latest - low
        while (found := data.rfind(separator, max(0, start - gap + 1), start + gap - 1)) >= 0:
            start = found
        if low == 0 or start >= gap - 1:
            return low + start
        reach *= 4  # a match that spans `start` may begin before the bytes that were read


def skip_to_first_document(
    blocks: Iterator[bytes], separator: bytes, start: int, begin: int, end: int
) -> tuple[int, bytes] | None:
    """Return the offset of the first document that begins at or after `begin`, and the bytes read from there on.

    `blocks` are the bytes from `start` on, see `scan_start`. Returns None if the document begins at `end` or later.
    """
    data = b""
    for block in blocks:
        data += block
        while (found := data.find(separator)) >= 0:
            start += found + len(separator)
            data = data[found + len(separator) :]
            if start >= begin:
                return (start, data) if start < end or end < 0 else None
        kept = min(len(data), len(separator) - 1)  # a separator may begin in it
        start, data = start + len(data) - kept, data[len(data) - kept :]
        if 0 <= end <= start:
            return None
    return None
