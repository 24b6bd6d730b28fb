"""JSON lines: one document per line, in a field of the line's object."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json

from databuilder import pieces
from databuilder.pieces import End, Piece, Reading, TextCounts
from databuilder.utf8 import not_utf8
from transformerlm.tokenizer.utf8 import valid_unicode
from transformerlm.utils.errors import DataError


def read_json_lines(
    blocks: Iterable[bytes], name: str, reading: Reading, counts: TextCounts, *, begin: int, end: int
) -> Iterator[list[Piece]]:
    """Yield the documents of the lines that begin before byte `end`; `blocks` are the bytes of `name` from `begin` on.

    A line is held in memory whole. Blank lines are skipped. Raises `DataError` with the byte offset of a bad record.
    """
    reader = _LineReader(name, reading, counts)
    for place, lines in _lines(blocks, begin, end):
        yield document_pieces(reader.texts(lines, place), counts)


def document_pieces(texts: list[bytes], counts: TextCounts) -> list[Piece]:
    """Return whole documents as pieces, and count them."""
    num_bytes = sum(map(len, texts))
    documents = list(filter(None, texts))
    counts.bytes_read += num_bytes
    counts.bytes_used += num_bytes
    counts.documents_used += len(documents)
    counts.documents_empty += len(texts) - len(documents)
    found: list[Piece] = []
    for text in documents:
        start = 0
        while len(text) - start > pieces.PIECE_BYTES:
            cut = start + pieces.PIECE_BYTES
            while text[cut] & 0xC0 == 0x80:  # inside a character
                cut -= 1
            found.append(Piece(text[start:cut], End.OPEN))
            start = cut
        found.append(Piece(text[start:] if start else text, End.FINAL))
    return found


def _lines(blocks: Iterable[bytes], begin: int, end: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield groups of lines, each with the offset of its first line."""
    waiting: list[bytes] = []
    place = begin
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if not cut:
            waiting.append(block)
            continue
        data = b"".join((*waiting, block[:cut]))
        waiting = [block[cut:]]
        yield place, _before_end(data.split(b"\n")[:-1], place, end)
        place += len(data)
        if 0 <= end <= place:
            return
    if last := b"".join(waiting):
        yield place, [last]


def _before_end(lines: list[bytes], place: int, end: int) -> list[bytes]:
    if end < 0 or place + sum(map(len, lines)) + len(lines) <= end:
        return lines
    kept = []
    for line in lines:
        if place >= end:
            break
        kept.append(line)
        place += len(line) + 1
    return kept


class _LineReader:
    """Extracts the text from the records of one source."""

    def __init__(self, name: str, reading: Reading, counts: TextCounts) -> None:
        self._name = name
        self._field = reading.text_field
        self._errors = reading.errors
        self._skip_null = reading.skip_null
        self._counts = counts

    def texts(self, lines: list[bytes], place: int) -> list[bytes]:
        """Return the texts of `lines`; the first line begins at byte `place`."""
        texts = []
        for line in lines:
            text = self._text(line, place)
            if text is not None:
                texts.append(text)
            place += len(line) + 1
        return texts

    def _text(self, line: bytes, place: int) -> bytes | None:
        """Return the text of one record, or None to leave it out."""
        try:
            text = from_json(line, cache_strings="keys")[self._field]
            if type(text) is str:
                return text.encode("utf-8")
        except (ValueError, TypeError, LookupError):
            pass
        return self._text_of_odd_line(line, place)

    def _text_of_odd_line(self, line: bytes, place: int) -> bytes | None:
        """Handle a line that is blank, not UTF-8, not a valid record, or has a lone surrogate or a null."""
        if not line.strip():
            return None
        text = self._field_of(line.decode("utf-8", "surrogateescape"), place)
        if text is None:
            self._counts.documents_null += 1
            return None
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError as error:
            if self._errors == "strict":
                raise not_utf8(self._name, f"in the record at byte {place}", error.reason) from error
        if self._errors == "skip":
            num_bytes = len(text.encode("utf-8", "replace"))
            self._counts.bytes_read += num_bytes
            self._counts.bytes_not_utf8 += num_bytes
            self._counts.documents_not_utf8 += 1
            return None
        replaced = valid_unicode(self._field_of(line.decode("utf-8", "replace"), place) or "")
        self._counts.characters_replaced += replaced.count("\ufffd") - text.count("\ufffd")
        return replaced.encode("utf-8")

    def _field_of(self, line: str, place: int) -> str | None:
        """Return the text of a record; None if it is null and `skip_null` is set."""
        where = f"{self._name}: the record at byte {place}"
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); every line must be a JSON object") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object; every line must be one, with the text in a field")
        if self._field not in record:
            raise DataError(f"{where} {missing_field(self._field, record)}")
        text = record[self._field]
        if isinstance(text, str) or (text is None and self._skip_null):
            return text
        advice = "; set input.skip_null = true to leave such records out" if text is None else ""
        raise DataError(f"{where} has {json.dumps(text)[:40]} in its field {self._field!r}, not a text{advice}")


def missing_field(field: str, known: Iterable[str]) -> str:
    """Return the end of an error message about a record without `field`."""
    names = ", ".join(map(repr, known))
    return f"has no field {field!r}, only {names}; set input.text_field to the one that holds the text"
