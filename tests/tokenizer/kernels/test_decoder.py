"""The compiled decoder against joining the tokens."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels import decoder
from transformerlm.tokenizer.kernels.decoder import decode_array, decode_list, decode_tables
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.utils.errors import TokenizerError

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

TOKENS = [random.Random(size).randbytes(size) for size in range(1, 301)]
TABLES = decode_tables(dict(enumerate(TOKENS)))
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, ">u2", ">i8"]

vocabularies = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20)


@given(st.data(), vocabularies)
def test_decoding_joins_the_tokens(data: st.DataObject, tokens: list[bytes]) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=50))
    tables = decode_tables(dict(enumerate(tokens)))
    expected = b"".join(tokens[token_id] for token_id in ids)
    assert decode_list(ids, tables) == expected
    for dtype in (np.uint16, np.uint32, np.int64):
        assert decode_array(np.array(ids, dtype), tables) == expected


@pytest.mark.parametrize("dtype", INTEGERS)
def test_ids_of_any_integer_type(dtype: Any) -> None:
    ids = [5, 127, 0, 15, 16, 17, 99]
    assert decode_array(np.array(ids, dtype), TABLES) == b"".join(TOKENS[token_id] for token_id in ids)


@pytest.mark.parametrize("last", range(0, 300, 7))
def test_nothing_is_written_behind_the_output(last: int) -> None:
    ids = np.array([3, 299, 20, last], np.uint32)
    size = sum(len(TOKENS[token_id]) for token_id in ids)
    room = np.full(size + 64, 170, np.uint8)
    decoder.copy_tokens(ids, TABLES, room[:size])
    assert room[:size].tobytes() == b"".join(TOKENS[token_id] for token_id in ids)
    assert (room[size:] == 170).all()


def test_zeros_belong_to_a_token() -> None:
    tables = decode_tables({0: b"\0", 1: b"a\0\0", 2: b"\0" * 17})
    assert decode_list([1, 0, 2, 1], tables) == b"a\0\0" + b"\0" * 18 + b"a\0\0"


def test_no_ids() -> None:
    assert decode_list([], TABLES) == b""
    assert decode_array(np.array([], np.uint16), TABLES) == b""


def test_bytes_are_made_anew_each_time() -> None:
    """They are written to while they are made; no other bytes may change."""
    single = decode_tables({byte: bytes([byte]) for byte in range(256)})
    made = [decode_array(np.array([byte]), single) for byte in range(256)]
    assert made == [bytes([byte]) for byte in range(256)]
    assert decode_array(np.array([65]), single) == b"A"
    assert hash(made[65]) == hash(b"A")


def test_arrays_that_are_read_only_or_strided_or_unaligned() -> None:
    ids = np.arange(0, 200, dtype=np.uint32)
    ids.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + ids.tobytes(), np.uint8)[1:].view(np.uint32)
    assert decode_array(ids, TABLES) == decode_array(unaligned, TABLES) == b"".join(TOKENS[:200])
    assert decode_array(ids[::-3], TABLES) == b"".join(TOKENS[199::-3])


@pytest.mark.parametrize(
    ("dtype", "token_id"),
    [
        (np.int64, -1),
        (np.int64, 300),
        (np.int64, -(2**63)),
        (np.int8, -1),
        (np.uint16, 65535),
        (np.uint32, 2**32 - 1),
        (np.uint64, 2**63),
        (np.uint64, 2**64 - 1),
    ],
)
def test_an_id_outside_the_vocabulary_is_named(dtype: Any, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"^{token_id} is no id of the vocabulary, whose size is 300"):
        decode_array(np.array([1, 2, token_id, 3], dtype), TABLES)


@pytest.mark.parametrize("ids", [np.array([1.0]), np.array([True]), np.array([[1, 2]]), np.array(1), np.array(["1"])])
def test_an_array_that_is_not_of_ids(ids: Any) -> None:
    with pytest.raises(TokenizerError, match="give an array of integers in one dimension"):
        decode_array(ids, TABLES)


def test_a_list_takes_what_is_an_integer() -> None:
    mixed: Any = [True, np.int64(2), np.uint16(3), 4]
    assert decode_list(mixed, TABLES) == b"".join(TOKENS[1:5])
    assert decode_list((1, 2), TABLES) == b"".join(TOKENS[1:3])


@pytest.mark.parametrize("stranger", [1.0, "1", None, -1, 2**32, 2**64, np.float64(1)])
def test_a_list_with_something_else_is_left_to_the_plain_layer(stranger: Any) -> None:
    assert decode_list([1, stranger, 2], TABLES) is None


def test_an_id_in_a_list_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"^300 is no id of the vocabulary, whose size is 300"):
        decode_list([299, 300, 301], TABLES)
