r"""The merger: one pre-token → the numbers of its tokens.

Byte-pair encoding starts from single bytes and joins the adjacent pair of the lowest rank, the leftmost first, until no
pair merges; see `transformerlm.tokenizer.bpe`. Here a token has a number: 0 to 255 are the single bytes, the other
tokens follow.

A short piece is merged as the definition says. One array holds each token together with the rank of the merge of it and
the next, in the high half, so that the smallest item is the pair to join. (A dot stands for no merge.)

    merges       rank 0: l o    rank 1: lo w    rank 2: e r    rank 3: low er

    items        0│l     .│o    .│w    2│e    .│r       l o w e r
                 1│lo    .│w    2│e    .│r              lo w e r
                 .│low   2│e    .│r                     low e r
                 3│low   .│er                           low er
                 .│lower                                lower

That is quadratic. For a word it is the fastest way, but a pre-token can also be a megabyte of one letter. In a long
piece each token stays at the position of its bytes, and its number is written at its first and last byte. So a token
that starts at `place` ends `sizes[number]` bytes later, where the next one starts; the one before it ends at `place -
1`, where its number is found. Joining two tokens is writing one number twice. (A dot is inside a token and has no
meaning.)

    place         0    1    2    3    4    5    6
    tokens        l    o    w    e    r    l    o
    l o           lo   lo   w    e    r    lo   lo
    lo w          low  .    low  e    r    lo   lo

A heap holds rank and place of every pair that merges, as one number, the rank in the high bits. Some of them are out of
date, since another merge has used one of the two tokens; they are passed over. Each merge adds at most two pairs, so
that the work is O(n log n) in the length.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), section 3.2.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.jit import borrowing_kernel, kernel
from transformerlm.tokenizer.validation import SINGLE_BYTES
from transformerlm.utils.errors import TokenizerError

SHORT = 80
"""Bytes of the longest piece that is merged as the definition says; from about here on the heap is faster."""

NEVER = 2**31 - 1
"""The rank of two tokens that do not merge: higher than any other, so that it is never the lowest of several."""

NO_MERGE = NEVER << 32
"""The least item of a short piece that has no merge."""

TOKEN = 2**32 - 1
"""The half of an item that holds the token."""

PLACE_BITS = 42
"""Bits of a place in the heap of a long piece, below the rank."""

NO_TOKEN = -1

FIBONACCI = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio, for hashing by multiplication (Knuth, The Art of Computer Programming, 6.4)."""

TOKEN_BITS = 21
"""Bits of a number or a rank in a slot: three of them fit one word, so that a look-up reads memory once."""

FREE = np.uint64(2**64 - 1)
_TOKEN_BITS = np.uint64(TOKEN_BITS)
_RANK = np.uint64((1 << TOKEN_BITS) - 1)
_HALF = np.uint64(32)


class MergeTables(NamedTuple):
    """The tables of a list of merges; read-only, so threads share them."""

    byte_pairs: npt.NDArray[np.int32]
    """(65536,); the rank of the merge of bytes a and b at 256 a + b, or NEVER."""
    slots: npt.NDArray[np.uint64]
    """(a power of two,); a hash table of all other pairs: left, right and rank, 21 bits each, or FREE."""
    pairs: npt.NDArray[np.int32]
    """(merges, 3); the numbers of the two tokens that a merge joins, and of the one that it makes."""
    sizes: npt.NDArray[np.int32]
    """(tokens,); bytes of each token."""


def token_numbers(tokens: Iterable[bytes]) -> dict[bytes, int]:
    """Number the tokens: first all single bytes, then the other `tokens` in order."""
    number_of = {token: number for number, token in enumerate(SINGLE_BYTES)}
    for token in tokens:
        if len(token) > 1:
            number_of.setdefault(token, len(number_of))
    return number_of


def merge_tables(merges: Sequence[tuple[bytes, bytes]], number_of: Mapping[bytes, int]) -> MergeTables:
    """Return the tables of a list of merges, the lowest rank first; `number_of` is the result of `token_numbers`.

    A pair that is listed twice has its last rank. Raises `TokenizerError` for more than about two million merges or
    tokens.
    """
    count = max(len(merges), len(number_of))
    if count >= 1 << TOKEN_BITS:
        raise TokenizerError(f"there are {count:,} merges or tokens; {(1 << TOKEN_BITS) - 1:,} is the most, give fewer")
    pairs = np.array(
        [(number_of[left], number_of[right], number_of[left + right]) for left, right in merges], np.int32
    ).reshape(-1, 3)
    byte_pairs = np.full(256 * 256, NEVER, np.int32)
    slots = np.full(1 << (2 * len(merges)).bit_length(), FREE)  # at least half are free, so that few are tried
    enter_merges(pairs, byte_pairs, slots)
    return MergeTables(byte_pairs, slots, pairs, np.fromiter(map(len, number_of), np.int32, len(number_of)))


@borrowing_kernel
def enter_merges(pairs, byte_pairs, slots):
    """Enter all merges into the two tables, which are empty."""
    for rank in range(len(pairs)):
        left, right = pairs[rank, 0], pairs[rank, 1]
        if left < 256 and right < 256:
            byte_pairs[256 * left + right] = rank
        else:
            pair = np.uint64(left) << _TOKEN_BITS | np.uint64(right)
            slot = first_slot(pair, slots)
            while slots[slot] != FREE and slots[slot] >> _TOKEN_BITS != pair:
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = pair << _TOKEN_BITS | np.uint64(rank)


@borrowing_kernel
def first_slot(pair, slots):
    """Return the slot at which the search for a pair begins. The number of slots is a power of two."""
    return np.int64(pair * FIBONACCI >> _HALF) & (len(slots) - 1)


@borrowing_kernel
def rank_of(left, right, slots):
    """Return the rank of the merge of two tokens, not both single bytes, or NEVER."""
    pair = np.uint64(left) << _TOKEN_BITS | np.uint64(right)
    slot = first_slot(pair, slots)
    while slots[slot] != FREE:
        if slots[slot] >> _TOKEN_BITS == pair:
            return np.int64(slots[slot] & _RANK)
        slot = (slot + 1) & (len(slots) - 1)
    return np.int64(NEVER)


@borrowing_kernel
def merge_short(buffer, start, length, tables, items):
    """Write the numbers of the tokens of `buffer[start : start + length]` into `items`, and return how many they are.

    This follows the definition.

    Args:
        buffer: uint8.
        tables: `MergeTables`.
        items: int64; at least `length` items, all may be overwritten.
    """
    byte_pairs, slots, pairs = tables.byte_pairs, tables.slots, tables.pairs
    byte = np.int64(buffer[start]) if length > 0 else 0
    for at in range(length - 1):
        next_byte = np.int64(buffer[start + at + 1])
        items[at] = np.int64(byte_pairs[256 * byte + next_byte]) << 32 | byte
        byte = next_byte
    if length > 0:
        items[length - 1] = NO_MERGE | byte
    while True:
        least, at = NO_MERGE, 0
        for i in range(length - 1):
            if items[i] < least:
                least, at = items[i], i
        if least == NO_MERGE:
            break
        token = np.int64(pairs[least >> 32, 2])
        length -= 1
        rank = NEVER
        if at + 1 < length:
            for i in range(at + 1, length):
                items[i] = items[i + 1]
            rank = rank_of(token, items[at + 1] & TOKEN, slots)
        items[at] = rank << 32 | token
        if at > 0:
            before = items[at - 1] & TOKEN
            items[at - 1] = rank_of(before, token, slots) << 32 | before
    for i in range(length):
        items[i] &= TOKEN
    return length


@kernel
def merge_long(buffer, start, length, tables, numbers):
    """Do what `merge_short` does, by a heap."""
    byte_pairs, slots, pairs, sizes = tables
    tokens = np.empty(length, np.int32)
    for place in range(length):
        tokens[place] = buffer[start + place]
    heap = [np.int64(0) for _ in range(0)]  # so that its type is known
    for place in range(length - 1):
        rank = np.int64(byte_pairs[256 * np.int64(tokens[place]) + tokens[place + 1]])
        if rank != NEVER:
            heap.append(rank << PLACE_BITS | place)
    heapq.heapify(heap)
    while len(heap) > 0:
        first = heapq.heappop(heap)
        rank, place = first >> PLACE_BITS, first & ((1 << PLACE_BITS) - 1)
        left, right, token = pairs[rank, 0], pairs[rank, 1], pairs[rank, 2]
        middle, end = place + sizes[left], place + sizes[token]
        if tokens[place] != left or middle >= length or tokens[middle] != right:
            continue
        tokens[middle - 1] = tokens[middle] = NO_TOKEN
        tokens[place] = tokens[end - 1] = token
        if place > 0:
            before = tokens[place - 1]
            rank = rank_of(before, token, slots)
            if rank != NEVER:
                heapq.heappush(heap, rank << PLACE_BITS | (place - sizes[before]))
        if end < length:
            rank = rank_of(token, tokens[end], slots)
            if rank != NEVER:
                heapq.heappush(heap, rank << PLACE_BITS | place)
    place = found = 0
    while place < length:
        numbers[found] = tokens[place]
        place += sizes[tokens[place]]
        found += 1
    return found
