"""Keys of pre-tokens: equal for equal bytes, different for different short ones, whatever stands behind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.keys import LONG, MAX_EXACT, hash_key, piece_key

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

short_pieces = st.binary(min_size=1, max_size=MAX_EXACT)
long_pieces = st.binary(min_size=MAX_EXACT + 1, max_size=70)


def key_of(piece: bytes, before: bytes = b"", behind: bytes = bytes(16)) -> tuple[int, int]:
    buffer = np.frombuffer(bytearray(before + piece + behind), np.uint8)
    low, high = piece_key(buffer, len(before), len(piece))
    return int(low), int(high)


@given(short_pieces)
def test_a_short_key_is_the_bytes_and_their_number(piece: bytes) -> None:
    low, high = key_of(piece)
    both = low.to_bytes(8, "little") + high.to_bytes(8, "little")
    assert both == piece.ljust(MAX_EXACT, b"\0") + bytes([len(piece)])


@given(short_pieces | long_pieces, st.binary(max_size=9), st.binary(min_size=16, max_size=16))
def test_a_key_does_not_depend_on_what_stands_around(piece: bytes, before: bytes, behind: bytes) -> None:
    assert key_of(piece, before, behind) == key_of(piece)


@given(long_pieces, st.data())
def test_a_long_key_is_marked_and_depends_on_every_byte(piece: bytes, data: st.DataObject) -> None:
    low, high = key_of(piece)
    assert high >= int(LONG)
    place = data.draw(st.integers(0, len(piece) - 1))
    other = bytearray(piece)
    other[place] ^= data.draw(st.integers(1, 255))
    other_low, other_high = key_of(bytes(other))
    assert low != other_low
    assert high != other_high


def test_a_long_key_depends_on_the_length() -> None:
    keys = {key_of(bytes(length)) for length in range(MAX_EXACT + 1, 200)}
    assert len(keys) == 200 - MAX_EXACT - 1


@pytest.mark.parametrize("place", [0, 3, 6, 7, 8, 12])
def test_the_highest_bits_of_the_hash_spread_keys_that_differ_in_two_bytes(place: int) -> None:
    buckets = np.zeros(1 << 12, np.int64)
    for number in range(1 << 14):
        piece = bytes(place) + number.to_bytes(2, "little") + bytes(1)
        low, high = key_of(piece)
        buckets[int(hash_key(np.uint64(low), np.uint64(high))) >> 52] += 1
    assert buckets.max() < 24  # random ones have 4 on average, and more than 18 about once in a million times
