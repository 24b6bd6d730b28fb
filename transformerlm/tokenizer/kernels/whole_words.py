"""Whole words: pre-tokens that have an id as they are, whatever the merges would make of them.

For most, merging gives the same id, but some vocabularies have tokens that merging never makes. They are looked up only
for pre-tokens that are not in the encoder's cache.

The table is a hash table with open addressing, as the counter's: from the row that the hash of a key names, row after
row, until the row with the key or an empty one. The key of a word of more than 15 bytes is a hash (see `pieces`), so
its bytes are compared.

    rows      low   high   number of the word            `high` is 0 in an empty row
    words     all words one after another, where each ends, its id
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.jit import borrowing_kernel
from transformerlm.tokenizer.kernels.keys import MAX_EXACT, hash_key, piece_key

LOW, HIGH, NUMBER = range(3)
EMPTY, ONE = np.uint64(0), np.uint64(1)
NO_WORD = -1
_HALF = np.uint64(32)
_READABLE = bytes(16)  # must follow the bytes from which a key is made


class WholeWords(NamedTuple):
    """The words and the table. Only read, so that threads share it."""

    rows: npt.NDArray[np.uint64]
    """(a power of two, 3)."""
    bytes_: npt.NDArray[np.uint8]
    begins: npt.NDArray[np.int64]
    """(words + 1,); where each begins in `bytes_`, and the last ends."""
    ids: npt.NDArray[np.int64]


def whole_words_of(id_of: Mapping[bytes, int]) -> WholeWords:
    """Return the table of non-empty words and their ids."""
    words = WholeWords(
        np.zeros((1 << (2 * len(id_of)).bit_length(), 3), np.uint64),  # at least half are empty
        np.frombuffer(bytearray(b"".join([*id_of, _READABLE])), np.uint8),
        np.fromiter(accumulate(map(len, id_of), initial=0), np.int64, len(id_of) + 1),
        np.fromiter(id_of.values(), np.int64, len(id_of)),
    )
    if id_of:
        enter_words(words)
    return words


@borrowing_kernel
def enter_words(words):
    """Enter all words into the table, which is empty."""
    rows, begins = words.rows, words.begins
    mask = np.uint64(len(rows) - 1)
    for number in range(len(words.ids)):
        low, high = piece_key(words.bytes_, begins[number], begins[number + 1] - begins[number])
        row = hash_key(low, high) >> _HALF & mask
        while rows[row, HIGH] != EMPTY:
            row = row + ONE & mask
        rows[row, LOW], rows[row, HIGH], rows[row, NUMBER] = low, high, np.uint64(number)


@borrowing_kernel
def find_word(words, buffer, start, length, low, high):
    """Return the number of the word `buffer[start : start + length]`, whose key is low and high, or NO_WORD."""
    rows, begins = words.rows, words.begins
    mask = np.uint64(len(rows) - 1)
    row = hash_key(low, high) >> _HALF & mask
    while rows[row, HIGH] != EMPTY:
        if rows[row, LOW] == low and rows[row, HIGH] == high:
            number = np.int64(rows[row, NUMBER])
            if length <= MAX_EXACT or is_word(words.bytes_, begins[number], begins[number + 1], buffer, start, length):
                return number
        row = row + ONE & mask
    return NO_WORD


@borrowing_kernel
def is_word(bytes_, begin, end, buffer, start, length):
    """Return whether `bytes_[begin:end]` is `buffer[start : start + length]`."""
    if end - begin != length:
        return False
    same = 0
    while same < length and bytes_[begin + same] == buffer[start + same]:
        same += 1
    return same == length
