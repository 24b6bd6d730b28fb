"""Cutting text into documents: the law of `bytes.split`, in pieces, and what stays on which side."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from databuilder import pieces
from databuilder.pieces import Batch, End, ErrorPolicy, Piece, Reading, TextCounts
from databuilder.readers import text as documents
from databuilder.readers.text import DocumentCutter, scan_start, skip_to_first_document
from transformerlm.tokenizer.kernels import jit as compiling
from transformerlm.utils.errors import DataError

COMPILED = st.sampled_from([False, True] if compiling.available() else [False])
SEPARATORS = ["<|e|>", "-", "--", "---", "\n\n", "aba", "é", "\n-\n"]
TEXTS = st.lists(st.sampled_from([b"a", b"b", b"-", b"\n", b"\r", b"<|e|>", b"<|", "é".encode(), "你".encode()]))
BROKEN_TEXTS = st.lists(st.sampled_from([b"a", b"--", b"\n", "é".encode(), b"\xe4\xbd", b"\xff", b"\xef\xbf\xbd"]))


def whole(batches: Iterable[Batch]) -> list[bytes]:
    """Join the pieces of each document."""
    found, open_pieces = [], []
    for batch in batches:
        for text, end in batch:
            assert text.decode("utf-8") is not None
            open_pieces.append(text)
            if end is not End.OPEN:
                found += [b"".join(open_pieces)] if end is End.FINAL else []
                open_pieces.clear()
    assert not open_pieces
    return found


def naive(data: bytes, separator: str) -> list[bytes]:
    stripped = (document.strip(b"\r\n") for document in data.split(separator.encode()))
    return [document for document in stripped if document]


def blocks_of(data: bytes, size: int, start: int = 0) -> Iterator[bytes]:
    return (data[place : place + size] for place in range(start, len(data), size))


def cut_part(
    data: bytes, reading: Reading, counts: TextCounts, size: int, begin: int, end: int, *, compiled: bool
) -> list[bytes]:
    separator = reading.separator.encode()
    start = scan_start(separator, begin, lambda low, high: data[low:high])
    blocks = blocks_of(data, size, start)
    place = 0
    if begin:
        first = skip_to_first_document(blocks, separator, start, begin, end)
        if first is None:
            return []
        place, rest = first
        blocks = iter([rest, *blocks])
    return whole(DocumentCutter("a.txt", reading, counts, begin=place, end=end, compiled=compiled).cut(blocks))


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", 4)
        patch.setattr(documents, "_LOOK_BACK", 2)
        yield


@given(
    texts=TEXTS,
    separator=st.sampled_from(SEPARATORS),
    split_bytes=st.integers(1, 40),
    block_bytes=st.integers(1, 12),
    piece_bytes=st.integers(1, 12),
    compiled=COMPILED,
)
def test_the_documents_of_the_parts_are_those_of_the_whole(
    texts: list[bytes], separator: str, split_bytes: int, block_bytes: int, piece_bytes: int, compiled: bool
) -> None:
    data = b"".join(texts)
    reading = Reading(separator)
    counts = TextCounts()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        patch.setattr(documents, "_LOOK_BACK", 2)
        for begin in range(0, len(data), split_bytes):
            end = min(begin + split_bytes, len(data))
            found += cut_part(data, reading, counts, block_bytes, begin, end, compiled=compiled)
    assert found == naive(data, separator)
    assert counts.documents_used == len(found)
    assert counts.bytes_used == sum(map(len, found))
    assert counts.bytes_read == len(data) == counts.bytes_used + counts.bytes_separators


@given(
    texts=BROKEN_TEXTS,
    errors=st.sampled_from(["replace", "skip"]),
    split_bytes=st.integers(1, 40),
    block_bytes=st.integers(1, 12),
    piece_bytes=st.integers(1, 12),
    compiled=COMPILED,
)
def test_what_is_not_utf8_is_replaced_or_left_out_and_counted(
    texts: list[bytes], errors: ErrorPolicy, split_bytes: int, block_bytes: int, piece_bytes: int, compiled: bool
) -> None:
    data = b"".join(texts)
    expected = naive(data, "--")
    read = sum(map(len, expected))
    valid = [text for text in expected if text.decode("utf-8", "ignore").encode() == text]
    marks = sum(text.decode("utf-8", "replace").count("\ufffd") for text in expected)
    marks -= sum(text.count("\ufffd".encode()) for text in expected)
    counts = TextCounts()
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        for begin in range(0, len(data), split_bytes):
            end = min(begin + split_bytes, len(data))
            found += cut_part(data, Reading("--", errors=errors), counts, block_bytes, begin, end, compiled=compiled)
    assert counts.bytes_read == len(data)
    assert counts.bytes_separators == len(data) - read
    if errors == "skip":
        assert found == valid
        assert counts.documents_not_utf8 == len(expected) - len(valid)
        assert counts.bytes_not_utf8 == read - sum(map(len, valid))
    else:
        assert found == [text.decode("utf-8", "replace").encode() for text in expected]
        assert counts.characters_replaced == marks
        assert counts.bytes_used == read


@given(
    before=st.integers(0, 30).map(lambda number: b"x" * number),
    bad=st.sampled_from([b"\xff", b"\xe4\xbd", b"\xe4\xbda", b"\xe4\xbd\n"]),
    block_bytes=st.integers(1, 12),
    piece_bytes=st.integers(1, 12),
    compiled=COMPILED,
)
def test_strictly_what_is_not_utf8_is_named_with_its_byte(
    before: bytes, bad: bytes, block_bytes: int, piece_bytes: int, compiled: bool
) -> None:
    data = "\nfine é\n--\n".encode() + before + bad
    cutter = DocumentCutter("a.txt", Reading("--"), TextCounts(), begin=100, compiled=compiled)
    place = 100 + len(data) - len(bad)
    message = f"a.txt: not UTF-8 at byte {place} .*skip"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=message):
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        whole(cutter.cut(blocks_of(data, block_bytes)))


@pytest.mark.usefixtures("short_pieces")
def test_a_long_document_comes_in_pieces_as_it_is_read() -> None:
    data = "\none\n--\n你好你好\n\n".encode() * 2
    batches = DocumentCutter("a.txt", Reading("--"), TextCounts()).cut(blocks_of(data, 8))
    assert [piece for batch in batches for piece in batch] == [
        Piece(b"one", End.FINAL),
        Piece("你好".encode(), End.OPEN),
        Piece("你好".encode(), End.OPEN),
        Piece(b"\n\n\none", End.FINAL),  # the line breaks turned out to be inside
        Piece("你好你".encode(), End.OPEN),
        Piece("好".encode(), End.OPEN),
        Piece(b"", End.FINAL),
    ]


@pytest.mark.usefixtures("short_pieces")
def test_a_long_document_is_dropped_whole() -> None:
    counts = TextCounts()
    cutter = DocumentCutter("a.txt", Reading("--", errors="skip"), counts)
    batches = list(cutter.cut(blocks_of(b"\nlong and \xff\nlonger\n\n--fine", 4)))
    assert [piece.end for batch in batches for piece in batch][-2:] == [End.DROPPED, End.FINAL]
    assert whole(batches) == [b"fine"]
    assert counts == TextCounts(26, 4, 5, 17, documents_used=1, documents_not_utf8=1)


def test_empty_documents_are_counted_but_not_the_end_of_the_text() -> None:
    counts = TextCounts()
    assert whole(DocumentCutter("a.txt", Reading("--"), counts).cut([b"--one--\n--\ntwo\n--\n"])) == [b"one", b"two"]
    assert counts == TextCounts(18, 6, 12, documents_used=2, documents_empty=2)


def test_counts_add_up_and_survive_json() -> None:
    total, counts = TextCounts(bytes_read=1, documents_empty=2), TextCounts(3, 1, 2, documents_used=1)
    total.add(counts)
    assert total == TextCounts(4, 1, 2, documents_used=1, documents_empty=2)
    assert TextCounts.from_json(total.to_json()) == total
