"""The cutter finds separators as `bytes.find` does, and knows UTF-8 as Python does."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.cutter import cut_documents, find, is_utf8
from transformerlm.tokenizer.kernels.jit import available

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

TEXTS = st.lists(st.sampled_from([b"-", b"--", b"<|e|>", b"<|", b"\r\n", b"a" * 61, b"a"]), max_size=40).map(b"".join)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def is_python_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@given(text=TEXTS, separator=st.sampled_from([b"-", b"---", b"<|e|>"]), begin=st.integers(0, 80))
@example(text=b"a" * 61 + b"<|e|>", separator=b"<|e|>", begin=0)
@example(text=b"", separator=b"-", begin=0)
def test_a_separator_is_found_where_it_first_stands(text: bytes, separator: bytes, begin: int) -> None:
    assert find(array(text), begin, array(separator)) == text.find(separator, begin)


@given(text=TEXTS, separator=st.sampled_from([b"-", b"---", b"<|e|>"]), limit=st.integers(0, 400))
def test_documents_are_packed_up_to_the_limit(text: bytes, separator: bytes, limit: int) -> None:
    expected, num_empty, begin = [], 0, 0
    while begin < limit and (end := text.find(separator, begin)) >= 0:
        document = text[begin:end].strip(b"\r\n")
        begin = end + len(separator)
        expected += [document] if document else []
        num_empty += not document
    packed, ends = np.zeros(len(text), np.uint8), np.zeros(len(text), np.int64)
    count, empty, consumed, valid = cut_documents(array(text), array(separator), limit, packed, ends)
    assert (count, empty, consumed, valid) == (len(expected), num_empty, begin, True)
    assert ends[:count].tolist() == np.cumsum([len(document) for document in expected]).tolist()
    assert packed[: sum(map(len, expected))].tobytes() == b"".join(expected)


def test_every_short_sequence_is_utf8_exactly_if_python_says_so() -> None:
    leads = [b"", *(bytes([lead]) for lead in range(0x60, 0x100))]
    seconds = [bytes([byte]) for byte in (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)]
    tails = [b"", b"\x80", b"\xbf\x80", b"\x80\x80\x80", b"\x80a", b"a", b"\xc0"]
    sequences = [lead + second + tail for lead in leads for second in [b"", *seconds] for tail in tails]
    beside_words = [b"ascii is read by words, " + data for data in sequences]
    beside_words += [data + b" and so is this" for data in sequences]
    for data in sequences + beside_words:
        assert is_utf8(array(data), 0, len(data)) == is_python_utf8(data), data


@given(st.text().map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=3), st.integers(0, 99))
def test_text_with_something_else_in_it_is_utf8_if_python_says_so(text: bytes, other: bytes, place: int) -> None:
    data = text[:place] + other + text[place:]
    assert is_utf8(array(data), 0, len(data)) == is_python_utf8(data)


def test_documents_that_are_not_utf8_are_told() -> None:
    text = b"one--\xff--"
    packed, ends = np.zeros(len(text), np.uint8), np.zeros(2, np.int64)
    *_, valid = cut_documents(array(text), array(b"--"), len(text), packed, ends)
    assert not valid
