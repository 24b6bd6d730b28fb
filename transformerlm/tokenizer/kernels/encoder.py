r"""The encoder: bytes to ids, mostly from memory.

Most of a text's pre-tokens were met before, so their ids are kept in a cache and need not be merged again:

    text ──fill──▶ chunk ──scan──▶ starts ──piece_key──▶ keys ──▶ cache ──met before──▶ ids
                                                                    └─────new──merge──▶ ids, and into the cache

A chunk passes twice. The first pass makes the keys of all its pre-tokens and asks memory for their lines of the cache;
the second looks them up. Meanwhile they have arrived: memory takes as long as hundreds of instructions to answer, but
answers many questions at once.

The cache is a table of lines of 64 bytes, as much as memory hands over at a time. The hash of a key chooses the line. A
line has two entries of four words:

    low     the first eight bytes of the pre-token                                 (low and high: its key, see `pieces`)
    high    the next seven bytes; in the top byte, the length
    first   the first ids: four of 16 bits, or two of 32 if the vocabulary is so large
    rest    the other ids: three of 16 bits, or one of 32; in the last place, the number of ids

So an entry holds seven ids or three, enough for almost every pre-token. Both words are written to the output
whatever the number, and the next ids go over what was too much: that is faster than to write just as many. What does
not fit stands in the arena, a large array that is filled from the left; its entry has the top bit set:

    first   where in the arena
    rest    the length of the pre-token; above it, the number of ids; the top bit

There lie the ids and, for a pre-token of more than 15 bytes, whose key is only a hash, the bytes, to be compared. When
the arena is full, it is emptied together with the cache. So memory is fixed, whatever the text.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.chunks import CHUNK, fill, scan_chunk
from transformerlm.tokenizer.kernels.compiling import borrowing_kernel, kernel
from transformerlm.tokenizer.kernels.machine import borrow, prefetch, read_word, write_word
from transformerlm.tokenizer.kernels.merger import SHORT, MergeTables, borrow_tables, merge_long, merge_short
from transformerlm.tokenizer.kernels.pieces import MAX_EXACT, hash_key, piece_key
from transformerlm.tokenizer.kernels.scanner import PADDING
from transformerlm.tokenizer.kernels.special_tokens import find_special_token

LINE_BITS = 19
"""The cache has 2**19 lines: 32 MB, for a million pre-tokens; 100 MB of English have about half a million."""

LINE_WORDS, ENTRY_WORDS = 8, 4
ARENA = 1 << 21
"""Items of the arena: 8 MB."""

MAX_REMEMBERED = 192
"""Bytes of the longest pre-token that is remembered; longer ones hardly come again."""

SLACK = 8
"""Items behind the last id that may be written to: two words of ids of 16 bits."""

NONE = np.uint64(0)
IN_ARENA = np.uint64(1 << 63)
_LINE_SHIFT = np.uint64(64 - LINE_BITS)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(2**32 - 1)


class EncodeTables(NamedTuple):
    """What the encoder knows of a tokenizer. Only read, so that threads share it."""

    merges: MergeTables
    ids: npt.NDArray[np.unsignedinteger]
    """uint16 or uint32, as the output. The id of each token number: first those of the bytes, then of the products."""
    classes: npt.NDArray[np.uint8]
    """`unicode_classes.class_table()`."""


class Memory(NamedTuple):
    """What the encoder remembers and the room it works in; a thread needs one of its own."""

    lines: npt.NDArray[np.uint64]
    arena: npt.NDArray[np.uint32]
    arena_used: npt.NDArray[np.int64]
    """A single number: items of the arena that are taken."""
    numbers: npt.NDArray[np.int64]
    """Token numbers of the pre-token that is being merged."""


def new_memory() -> Memory:
    """Return an empty memory. Its pages are taken from the system when they are first written to."""
    size = LINE_WORDS << LINE_BITS
    words = np.zeros(size + LINE_WORDS, np.uint64)
    skip = -words.ctypes.data // words.itemsize % LINE_WORDS  # a line begins where a line of the processor's cache does
    return Memory(
        words[skip : skip + size],
        np.zeros(ARENA, np.uint32),
        np.zeros(1, np.int64),
        np.zeros(SHORT, np.int64),
    )


@kernel
def encode_texts(data, text_ends, special_tokens, tables, memory, ids, id_ends):
    """Encode texts, and return the number of their ids.

    Args:
        data: uint8; the texts one after another.
        text_ends: int64 of shape (texts,): where each of them ends, ascending.
        special_tokens: `SpecialTokens`.
        tables, memory: see there.
        ids: uint16 or uint32; where the ids go, at most one a byte, and `SLACK` items more.
        id_ends: int64 of shape (texts,): to be filled with where the ids of each text end.
    """
    chunk = np.empty(CHUNK + PADDING, np.uint8)
    starts = np.empty(CHUNK + 1, np.int64)
    keys = np.empty((CHUNK, 3), np.uint64)
    at = count = 0
    for text in range(len(text_ends)):
        end = text_ends[text]
        while at < end:
            special, special_end, special_id = find_special_token(data, at, end, special_tokens)
            size = CHUNK
            while at < special:
                length = min(size, special - at)
                if length + PADDING > len(chunk):
                    chunk = np.empty(length + PADDING, np.uint8)
                    starts = np.empty(length + 1, np.int64)
                fill(chunk, data, at, length)
                pieces = scan_chunk(chunk, length, at + length == special, tables.classes, starts)
                if pieces == 0:
                    size *= 2
                    continue
                if pieces > len(keys):
                    keys = np.empty((len(starts), 3), np.uint64)
                make_keys(chunk, starts, pieces, memory.lines, keys)
                count = look_up(chunk, starts, pieces, keys, tables, memory, ids, count)
                at += starts[pieces]
                size = CHUNK
            if special < end:
                ids[count] = special_id
                count += 1
            at = special_end
        id_ends[text] = count
    return count


@borrowing_kernel
def make_keys(chunk, starts, pieces, lines, keys):
    """Write into `keys` the key of each piece and where its line begins, and ask for the line."""
    for piece in range(pieces):
        start = starts[piece]
        low, high = piece_key(chunk, start, starts[piece + 1] - start)
        line = np.int64(hash_key(low, high) >> _LINE_SHIFT) * LINE_WORDS
        prefetch(lines, line)
        keys[piece, 0], keys[piece, 1], keys[piece, 2] = low, high, np.uint64(line)


@kernel
def look_up(chunk, starts, pieces, keys, tables, memory, ids, count):
    """Write the ids of the pieces behind the first `count` ids; return how many there are then."""
    chunk, starts, keys, ids = borrow(chunk), borrow(starts), borrow(keys), borrow(ids)
    tables, memory = borrowed(tables, memory)
    lines = memory.lines
    id_bits = 8 * ids.itemsize
    ids_in_word = 64 // id_bits
    for piece in range(pieces):
        low, high, line = keys[piece, 0], keys[piece, 1], np.int64(keys[piece, 2])
        first_differs = (read_word(lines, line) ^ low) | (read_word(lines, line + 1) ^ high)
        second = line + ENTRY_WORDS
        second_differs = (read_word(lines, second) ^ low) | (read_word(lines, second + 1) ^ high)
        entry = line + ENTRY_WORDS * np.int64(first_differs != NONE)  # no branch, which the processor would guess wrong
        rest = read_word(lines, entry + 3)
        is_known = min(first_differs, second_differs) == NONE
        if is_known and rest < IN_ARENA:
            write_word(ids, count, read_word(lines, entry + 2))
            write_word(ids, count + ids_in_word, rest)
            count += np.int64(rest >> (64 - id_bits))
        else:
            count += look_up_rare(chunk, starts, piece, keys, is_known, entry, tables, memory, ids, count)
    return count


@kernel
def look_up_rare(chunk, starts, piece, keys, is_known, entry, tables, memory, ids, count):
    """Write the ids of a piece that is in the arena or not known, and return their number."""
    start, length = starts[piece], starts[piece + 1] - starts[piece]
    if is_known:
        number = recall(chunk, start, length, memory.lines, entry, memory.arena, ids, count)
        if number > 0:
            return number
    if length <= SHORT:
        number = merge(chunk, start, length, tables, memory.numbers, ids, count)
    else:
        number = merge_longer(chunk, start, length, tables, ids, count)
    if length <= MAX_REMEMBERED:
        low, high, line = keys[piece, 0], keys[piece, 1], np.int64(keys[piece, 2])
        remember(chunk, start, length, low, high, line, memory, ids, count, number)
    return number


@kernel
def borrowed(tables, memory):
    """Return both with every array as `borrow` has it, so that the functions for rare pieces are called quickly."""
    tables = EncodeTables(borrow_tables(tables.merges), borrow(tables.ids), borrow(tables.classes))
    arena, arena_used, numbers = borrow(memory.arena), borrow(memory.arena_used), borrow(memory.numbers)
    return tables, Memory(borrow(memory.lines), arena, arena_used, numbers)


@borrowing_kernel
def recall(chunk, start, length, lines, entry, arena, ids, count):
    """Copy the ids of a piece from the arena and return their number; 0 if it was another piece with the same key."""
    place = np.int64(lines[entry + 2])
    number = np.int64((lines[entry + 3] & ~IN_ARENA) >> _HALF)
    if length > MAX_EXACT:
        if np.int64(lines[entry + 3] & _LOW_HALF) != length:
            return 0
        for byte in range(length):
            if arena[place + number + byte] != chunk[start + byte]:
                return 0
    for item in range(number):
        ids[count + item] = arena[place + item]
    return number


@borrowing_kernel
def merge(chunk, start, length, tables, numbers, ids, count):
    """Write the ids of a short piece that is not in the cache; return their number."""
    number = merge_short(chunk, start, length, tables.merges, numbers)
    for item in range(number):
        ids[count + item] = tables.ids[numbers[item]]
    return number


@kernel
def merge_longer(chunk, start, length, tables, ids, count):
    """Do what `merge` does for a piece of any length."""
    numbers = np.empty(length, np.int64)
    number = merge_long(chunk, start, length, tables.merges, numbers)
    for item in range(number):
        ids[count + item] = tables.ids[numbers[item]]
    return number


@borrowing_kernel
def remember(chunk, start, length, low, high, line, memory, ids, count, number):
    """Put a piece and its `number` ids, `ids[count:]`, into the cache.

    The first entry of a line stays with the piece that came first, likely a frequent one; the second goes to whichever
    came last.
    """
    lines, arena = memory.lines, memory.arena
    id_bits = 8 * ids.itemsize
    ids_in_word = 64 // id_bits
    if number < 2 * ids_in_word and length <= MAX_EXACT:
        first = pack(ids, count, min(number, ids_in_word), id_bits)
        rest = pack(ids, count + ids_in_word, number - ids_in_word, id_bits) | np.uint64(number) << (64 - id_bits)
    else:
        items = number + (length if length > MAX_EXACT else 0)
        if memory.arena_used[0] + items > len(arena):
            forget(memory)
        place = memory.arena_used[0]
        memory.arena_used[0] += items
        for item in range(number):
            arena[place + item] = ids[count + item]
        for item in range(items - number):
            arena[place + number + item] = chunk[start + item]
        first = np.uint64(place)
        rest = IN_ARENA | np.uint64(number) << _HALF | np.uint64(length)
    entry = line if lines[line + 1] == NONE else line + ENTRY_WORDS
    lines[entry], lines[entry + 1], lines[entry + 2], lines[entry + 3] = low, high, first, rest


@borrowing_kernel
def forget(memory):
    """Empty the cache and the arena."""
    for word in range(len(memory.lines)):
        memory.lines[word] = NONE
    memory.arena_used[0] = 0


@borrowing_kernel
def pack(ids, at, number, id_bits):
    """Return `number` ids from `ids[at]` on as one word, the first lowest; nothing if the number is not positive."""
    word = NONE
    for item in range(number):
        word |= np.uint64(ids[at + item]) << (id_bits * item)
    return word
