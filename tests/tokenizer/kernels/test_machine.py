"""The machine operations against plain Python, at every alignment."""

import random
from typing import Any

import numpy as np
import pytest

from transformerlm.tokenizer.kernels import intrinsics as machine
from transformerlm.tokenizer.kernels.jit import available, kernel
from transformerlm.tokenizer.unicode.classes import LETTER, NUMBER, WHITE, class_table

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

RANDOM = np.frombuffer(random.Random(0).randbytes(1024), np.uint8).copy()


# Only kernels can call the machine operations, so each is called through one.


@kernel
def read_word(array: Any, at: Any) -> Any:
    return machine.read_word(array, at)


@kernel
def write_word(array: Any, at: Any, word: Any) -> None:
    machine.write_word(array, at, word)


@kernel
def prefetch(array: Any, at: Any) -> None:
    machine.prefetch(array, at)


@kernel
def lowest_bit(mask: Any) -> Any:
    return machine.lowest_bit(mask)


@kernel
def classify(text: Any, at: Any) -> Any:
    return machine.classify(text, at)


@pytest.mark.parametrize("at", range(64))
def test_read_word_has_the_first_byte_lowest(at: int) -> None:
    assert read_word(RANDOM, at) == int.from_bytes(RANDOM[at : at + 8].tobytes(), "little")


def test_read_word_counts_in_items_of_the_array() -> None:
    numbers = np.arange(5, dtype=np.uint32)
    assert read_word(numbers, 3) == 3 + (4 << 32)


@pytest.mark.parametrize("at", range(64))
def test_write_word_changes_its_eight_bytes_and_no_others(at: int) -> None:
    array = RANDOM.copy()
    word = 0xFEDCBA9876543210
    write_word(array, at, np.uint64(word))
    assert array.tobytes() == RANDOM[:at].tobytes() + word.to_bytes(8, "little") + RANDOM[at + 8 :].tobytes()


def test_prefetch_changes_nothing() -> None:
    array = RANDOM.copy()
    for at in (0, 1, len(array) - 1):
        prefetch(array, at)
    assert (array == RANDOM).all()


@pytest.mark.parametrize("bit", range(64))
def test_lowest_bit(bit: int) -> None:
    upward = (1 << 64) - (1 << bit)  # this bit and all above
    assert lowest_bit(np.uint64(1 << bit)) == lowest_bit(np.uint64(upward)) == bit


def test_an_empty_mask_has_no_lowest_bit() -> None:
    assert lowest_bit(np.uint64(0)) == 64


def mask(truths: np.ndarray) -> int:
    """Return the number whose bit i is truth i."""
    return sum(1 << place for place, true in enumerate(truths.tolist()) if true)


@pytest.mark.parametrize("at", range(64))
def test_classify_agrees_with_the_class_table(at: int) -> None:
    every_byte_at_every_bit = np.tile(np.arange(257) % 256, 64).astype(np.uint8)  # 257: shifted by one each time
    for start in range(at, len(every_byte_at_every_bit) - 64, 64):
        block = every_byte_at_every_bit[start : start + 64]
        ascii_class = np.where(block < 0x80, class_table()[block], 0)
        assert classify(every_byte_at_every_bit, start) == (
            mask(ascii_class == LETTER),
            mask(ascii_class == NUMBER),
            mask(ascii_class == WHITE),
            mask(block == ord(" ")),
            mask(block == ord("'")),
            mask(block >= 0x80),
        )
