r"""The merger: one pre-token → the numbers of its tokens.

Byte-pair encoding starts from single bytes and joins the adjacent pair whose merge comes first in the list of merges,
until no pair has a merge. As in `transformerlm.tokenizer.merge`, a token goes by its number: 0 to 255 are the single
bytes, 256 + k is the product of merge k. So the pair to join is the one with the smallest product, and of several
such the leftmost.

A short piece is merged as the definition says. One array holds each token together with the product of it and
the next, in the high half, so that the smallest item is the pair to join. (A dot stands for no product.)

    merges       256 = l o    257 = lo w    258 = e r    259 = low er

    items        256│l   .│o   .│w   258│e   .│r        l o w e r
                 257│256   .│w   258│e   .│r            lo w e r
                 .│257   258│e   .│r                    low e r
                 259│257   .│258                        low er
                 .│259                                  lower

That is quadratic. For a word it is the fastest way, but a pre-token can also be a megabyte of one letter. In a long
piece each token stays where its bytes lie, and its number stands at its first byte and at its last. So a token that
starts at `place` ends `sizes[number]` bytes later, where the next one starts; the one before it ends at `place - 1`,
and its number stands there. To join two tokens is to write one number twice. (A dot is inside of a token and says
nothing.)

    place         0   1   2   3   4   5   6         places where a product can be made
    tokens        l   o   w   e   r   l   o         256: 0 and 5    258: 3
    made 256     256 256  w   e   r  256 256        257: 0          258: 3
    made 257     257  .  257  e   r  256 256        258: 3
    made 258     257  .  257 258 258 256 256        259: 0
    made 259     259  .   .   .  259 256 256

For each product there is a list of places, and the products are made in ascending order. A merge only makes pairs with
larger products than its own. So no product has its turn twice, and when it has it, all its places are known. Some
are out of date, since another merge has used one of the two tokens; they are passed over. A pair is listed when the
younger of its tokens comes into being, which are at most two pairs a merge; so the work is linear in the length.

The lists must be ascending, because places overlap in a run x x x, where the left one goes first. They are: all places
of a pair were listed while the younger of its tokens was made, in one sweep through an ascending list.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), section 3.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.compiling import borrowing_kernel, kernel
from transformerlm.tokenizer.kernels.machine import lowest_bit
from transformerlm.utils.errors import TokenizerError

SHORT = 80
"""Bytes of the longest piece that is merged as the definition says; from about here on the lists are faster."""

MAX_SMALL_PLACES = 2**31 // 3
"""Bytes of the longest piece whose cells, three a byte, can be numbered in 32 bits; that is half the memory."""

NEVER = 2**31 - 1
"""The product of two tokens that no merge joins: larger than any other, so that it is never the smallest of several."""

NO_PRODUCT = NEVER << 32
"""The least item of a short piece that has no product."""

TOKEN = 2**32 - 1
"""The half of an item that holds the token."""

NO_TOKEN = NO_CELL = -1

NONE, ONE = np.uint64(0), np.uint64(1)
FIBONACCI = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio, for hashing by multiplication (Knuth, The Art of Computer Programming, 6.4)."""

TOKEN_BITS = 21
"""Bits of a token number in a slot: three of them fit one word, so that a look-up reads memory once."""

FREE = np.uint64(2**64 - 1)
_TOKEN_BITS = np.uint64(TOKEN_BITS)
_PRODUCT = np.uint64((1 << TOKEN_BITS) - 1)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(2**32 - 1)


class MergeTables(NamedTuple):
    """What the merger knows of a list of merges. Only read, so that threads share it."""

    byte_pairs: npt.NDArray[np.int32]
    """(65536,); the product of bytes a and b at 256 a + b, or NEVER."""
    slots: npt.NDArray[np.uint64]
    """(a power of two,); a hash table of all other pairs: left, right and product, 21 bits each, or FREE."""
    pairs: npt.NDArray[np.uint64]
    """(tokens,); the two tokens that a product was made of, left in the high half; 0 for single bytes."""
    sizes: npt.NDArray[np.int32]
    """(tokens,); bytes of each token."""


def merge_tables(merges: Sequence[tuple[bytes, bytes]]) -> MergeTables:
    """Return the tables of a list of merges, each of single bytes and products of earlier merges.

    Raises `TokenizerError` for more than about two million merges.
    """
    count = len(merges)
    if count + 256 > 1 << TOKEN_BITS:
        raise TokenizerError(f"there are {count:,} merges; {(1 << TOKEN_BITS) - 256:,} is the most, give fewer")
    number_of = {left + right: product for product, (left, right) in enumerate(merges, start=256)}
    sizes = np.ones(256 + count, np.int32)
    sizes[256:] = np.fromiter(map(len, number_of), np.int32, count)
    number_of.update((bytes([byte]), byte) for byte in range(256))
    lefts = np.fromiter((number_of[left] for left, _ in merges), np.uint64, count)
    rights = np.fromiter((number_of[right] for _, right in merges), np.uint64, count)
    pairs = np.zeros(256 + count, np.uint64)
    pairs[256:] = lefts << _HALF | rights
    byte_pairs = np.full(256 * 256, NEVER, np.int32)
    slots = np.full(1 << (2 * count).bit_length(), FREE)  # at least half are free, so that few are tried
    enter_products(pairs, byte_pairs, slots)
    return MergeTables(byte_pairs, slots, pairs, sizes)


@borrowing_kernel
def enter_products(pairs, byte_pairs, slots):
    """Enter all products into the two tables, which are empty."""
    for product in range(256, len(pairs)):
        left, right = np.int64(pairs[product] >> _HALF), np.int64(pairs[product] & _LOW_HALF)
        if left < 256 and right < 256:
            byte_pairs[256 * left + right] = product
        else:
            pair = np.uint64(left) << _TOKEN_BITS | np.uint64(right)
            slot = first_slot(pair, slots)
            while slots[slot] != FREE:
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = pair << _TOKEN_BITS | np.uint64(product)


@borrowing_kernel
def first_slot(pair, slots):
    """Return the slot at which the search for a pair begins. The number of slots is a power of two."""
    return np.int64(pair * FIBONACCI >> _HALF) & (len(slots) - 1)


@borrowing_kernel
def product_of(left, right, slots):
    """Return the product of two tokens, not both single bytes, or NEVER."""
    pair = np.uint64(left) << _TOKEN_BITS | np.uint64(right)
    slot = first_slot(pair, slots)
    while slots[slot] != FREE:
        if slots[slot] >> _TOKEN_BITS == pair:
            return np.int64(slots[slot] & _PRODUCT)
        slot = (slot + 1) & (len(slots) - 1)
    return np.int64(NEVER)


@borrowing_kernel
def merge_short(buffer, start, length, tables, items):
    """Write the numbers of the tokens of `buffer[start : start + length]` into `items`, and return how many they are.

    This does it as the definition has it.

    Args:
        buffer: uint8.
        tables: `MergeTables`.
        items: int64; room for `length` of them, all of which may be written to.
    """
    byte_pairs, slots = tables.byte_pairs, tables.slots
    byte = np.int64(buffer[start]) if length > 0 else 0
    for at in range(length - 1):
        next_byte = np.int64(buffer[start + at + 1])
        items[at] = np.int64(byte_pairs[256 * byte + next_byte]) << 32 | byte
        byte = next_byte
    if length > 0:
        items[length - 1] = NO_PRODUCT | byte
    while True:
        least, at = NO_PRODUCT, 0
        for i in range(length - 1):
            if items[i] < least:
                least, at = items[i], i
        if least == NO_PRODUCT:
            break
        token = least >> 32
        length -= 1
        product = NEVER
        if at + 1 < length:
            for i in range(at + 1, length):
                items[i] = items[i + 1]
            product = product_of(token, items[at + 1] & TOKEN, slots)
        items[at] = product << 32 | token
        if at > 0:
            before = items[at - 1] & TOKEN
            items[at - 1] = product_of(before, token, slots) << 32 | before
    for i in range(length):
        items[i] &= TOKEN
    return length


@kernel
def merge_long(buffer, start, length, tables, numbers):
    """Do what `merge_short` does, by lists of places."""
    tokens = np.empty(length, np.int32)
    for place in range(length):
        tokens[place] = buffer[start + place]
    lists = len(tables.sizes)
    listed = np.zeros(lists // 64 + 1, np.uint64)
    if length <= MAX_SMALL_PLACES:
        ends, cells = np.empty((lists, 2), np.int32), np.empty((3 * length, 2), np.int32)
        merge_by_places(tokens, tables, listed, ends, cells)
    else:
        large_ends, large_cells = np.empty((lists, 2), np.int64), np.empty((3 * length, 2), np.int64)
        merge_by_places(tokens, tables, listed, large_ends, large_cells)
    place = found = 0
    while place < length:
        numbers[found] = tokens[place]
        place += tables.sizes[tokens[place]]
        found += 1
    return found


@borrowing_kernel
def merge_by_places(tokens, tables, listed, ends, cells):
    """Merge the bytes in `tokens`. The other arrays are the lists of places, all empty.

    Args:
        tokens: int32.
        tables: `MergeTables`.
        listed: a bit for each token number: whether its list has a place.
        ends: (tokens, 2); the first and the last cell of each list that has a place, else anything.
        cells: (3 * length of `tokens`, 2); a place, and the cell of the next place of its list or NO_CELL.
    """
    byte_pairs, slots, pairs, sizes = tables
    cells_used = 0
    for place in range(len(tokens) - 1):
        product = np.int64(byte_pairs[256 * tokens[place] + tokens[place + 1]])
        cells_used += list_place(product, place, cells_used, listed, ends, cells)
    for word in range(len(listed)):
        while listed[word] != NONE:
            product = 64 * word + lowest_bit(listed[word])
            left, right = np.int64(pairs[product] >> _HALF), np.int64(pairs[product] & _LOW_HALF)
            cell = np.int64(ends[product, 0])
            while cell != NO_CELL:
                place, cell = np.int64(cells[cell, 0]), np.int64(cells[cell, 1])
                middle, end = place + sizes[left], place + sizes[product]
                if tokens[place] != left or middle >= len(tokens) or tokens[middle] != right:
                    continue
                tokens[middle - 1] = tokens[middle] = NO_TOKEN
                tokens[place] = tokens[end - 1] = product
                if place > 0:
                    before = tokens[place - 1]
                    wider = product_of(before, product, slots)
                    cells_used += list_place(wider, place - sizes[before], cells_used, listed, ends, cells)
                if end < len(tokens):
                    wider = product_of(product, tokens[end], slots)
                    cells_used += list_place(wider, place, cells_used, listed, ends, cells)
            listed[word] &= listed[word] - ONE  # takes the lowest bit away, which is that of this product


@borrowing_kernel
def list_place(product, place, cell, listed, ends, cells):
    """Append a place to the list of a product, by a new cell, unless that is NEVER. Return how many cells that took."""
    if product == NEVER:
        return 0
    cells[cell, 0], cells[cell, 1] = place, NO_CELL
    word, bit = product >> 6, ONE << (product & 63)
    if listed[word] & bit == NONE:
        listed[word] |= bit
        ends[product, 0] = cell
    else:
        cells[ends[product, 1], 1] = cell
    ends[product, 1] = cell
    return 1
