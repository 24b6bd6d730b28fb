r"""The encoder: bytes to ids, mostly from a cache.

Most of a text's pre-tokens have occurred before, so their ids are cached and they need not be merged again:

    text ──fill──▶ chunk ──scan──▶ starts ──piece_key──▶ keys ──▶ cache ──met before──▶ ids
                                                                    └─────new──merge──▶ ids, and into the cache

A chunk takes two passes. The first makes the keys of all its pre-tokens and prefetches their cache lines; the second
looks them up. A miss costs hundreds of instructions, but prefetching makes the misses overlap.

The cache is a table of 64-byte lines, the size of a processor's cache line. The hash of a key chooses the line. A line
has two entries of four words:

    low     the first eight bytes of the pre-token                                 (low and high: its key, see `pieces`)
    high    the next seven bytes; in the top byte, the length
    first   the first ids: four of 16 bits, or two of 32 if the vocabulary is so large
    rest    the other ids: three of 16 bits, or one of 32; in the last place, the number of ids

So an entry holds seven ids or three, enough for almost every pre-token. Both words are always written to the output,
and the next ids overwrite the excess: that is faster than writing the exact number. Longer results are in the arena, a
large array that is filled from the left; their entries have the top bit set:

    first   where in the arena
    rest    the length of the pre-token; above it, the number of ids; the top bit

The arena holds the ids and, for a pre-token of more than 15 bytes, whose key is only a hash, the bytes to compare. When
the arena is full, it is emptied together with the cache. So memory is bounded.

Lines come in pairs. A pre-token that finds both entries of its line taken goes to the other line of the pair. That line
is searched only after a miss, so the common case is not slower.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.chunks import CHUNK, next_pieces
from transformerlm.tokenizer.kernels.intrinsics import prefetch, read_word, write_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel, kernel
from transformerlm.tokenizer.kernels.keys import MAX_EXACT, hash_key, piece_key
from transformerlm.tokenizer.kernels.merger import SHORT, MergeTables, merge_long, merge_short
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import PADDING
from transformerlm.tokenizer.kernels.pretokenize_regex import Rules
from transformerlm.tokenizer.kernels.special_tokens import find_special_token
from transformerlm.tokenizer.kernels.whole_words import NO_WORD, WholeWords, find_word

LINE_BITS = 19
"""The cache has 2**19 lines: 32 MB, for a million pre-tokens; 100 MB of English have about half a million."""

LINE_WORDS, ENTRY_WORDS = 8, 4
ARENA = 1 << 21
"""Items of the arena: 8 MB."""

MAX_REMEMBERED = 192
"""Bytes of the longest pre-token that is cached; longer ones rarely recur."""

SLACK = 8
"""Items behind the last id that may be written to: two words of ids of 16 bits."""

NO_ENTRY = NO_NUMBER = -1
NONE = np.uint64(0)
IN_ARENA = np.uint64(1 << 63)
_LINE_SHIFT = np.uint64(64 - LINE_BITS)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(2**32 - 1)


class EncodeTables(NamedTuple):
    """The encoder's tables of a tokenizer; read-only, so threads share them."""

    merges: MergeTables
    ids: npt.NDArray[np.unsignedinteger]
    """uint16 or uint32, as the output. The id of each token number of `merger`."""
    left_out: npt.NDArray[np.bool_]
    """(256,) or (0,); the bytes that have no id and are left out before merging, or nothing if there are none."""
    rules: Rules
    """How a text is cut into pre-tokens."""
    words: WholeWords
    """Pre-tokens that have an id as they are, and are not merged."""


class Memory(NamedTuple):
    """The encoder's cache and buffers; each thread needs its own."""

    lines: npt.NDArray[np.uint64]
    arena: npt.NDArray[np.uint32]
    arena_used: npt.NDArray[np.int64]
    """A single number: items of the arena that are taken."""
    numbers: npt.NDArray[np.int64]
    """Token numbers of the pre-token that is being merged."""
    rest: npt.NDArray[np.uint8]
    """Its bytes without those that are left out."""


def new_memory() -> Memory:
    """Return an empty memory. Its pages are committed when they are first written to."""
    size = LINE_WORDS << LINE_BITS
    words = np.zeros(size + LINE_WORDS, np.uint64)
    skip = -words.ctypes.data // words.itemsize % LINE_WORDS  # a line begins where a line of the processor's cache does
    return Memory(
        words[skip : skip + size],
        np.zeros(ARENA, np.uint32),
        np.zeros(1, np.int64),
        np.zeros(SHORT, np.int64),
        np.zeros(SHORT, np.uint8),
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
            while at < special:
                chunk, starts, pieces = next_pieces(data, at, special, tables.rules, chunk, starts)
                if pieces > len(keys):
                    keys = np.empty((len(starts), 3), np.uint64)
                make_keys(chunk, starts, pieces, memory.lines, keys)
                piece = 0
                while piece < pieces:
                    piece, count = look_up(chunk, starts, piece, pieces, keys, tables, memory, ids, count)
                    if piece < pieces:
                        count += merge_longer(chunk, starts, piece, keys, tables, memory, ids, count)
                        piece += 1
                at += starts[pieces]
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


@borrowing_kernel
def look_up(chunk, starts, first_piece, pieces, keys, tables, memory, ids, count):
    """Write the ids of the pieces from `first_piece` on behind the first `count` ids.

    Return where it stopped, and how many ids there are then: at `pieces`, or at a piece that is not in the cache and
    too long to be merged without more room.
    """
    lines = memory.lines
    id_bits = 8 * ids.itemsize
    ids_in_word = 64 // id_bits
    for piece in range(first_piece, pieces):
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
            number = look_up_rare(chunk, starts, piece, keys, is_known, entry, tables, memory, ids, count)
            if number == NO_NUMBER:
                return piece, count
            count += number
    return pieces, count


@borrowing_kernel
def look_up_rare(chunk, starts, piece, keys, is_known, entry, tables, memory, ids, count):
    """Write the ids of a piece that is in the arena or not known; return their number, NO_NUMBER if it is too long."""
    start, length = starts[piece], starts[piece + 1] - starts[piece]
    if not is_known:
        entry = find_next_door(memory.lines, keys, piece)
    if entry != NO_ENTRY:
        number = recall(chunk, start, length, memory, entry, ids, count)
        if number != NO_NUMBER:
            return number
    word = find_word(tables.words, chunk, start, length, keys[piece, 0], keys[piece, 1])
    if word != NO_WORD:
        ids[count] = tables.words.ids[word]
        number = 1
    elif length > SHORT:
        return NO_NUMBER
    elif len(tables.left_out) > 0:
        rest = leave_out(chunk, start, length, tables.left_out, memory.rest)
        number = merge_short(memory.rest, 0, rest, tables.merges, memory.numbers)
        write_ids(memory.numbers, number, tables.ids, ids, count)
    else:
        number = merge_short(chunk, start, length, tables.merges, memory.numbers)
        write_ids(memory.numbers, number, tables.ids, ids, count)
    if length <= MAX_REMEMBERED:
        remember(chunk, start, length, keys, piece, memory, ids, count, number)
    return number


@kernel
def merge_longer(chunk, starts, piece, keys, tables, memory, ids, count):
    """Write the ids of a piece of any length that is not in the cache, and return their number."""
    start, length = starts[piece], starts[piece + 1] - starts[piece]
    numbers = np.empty(length, np.int64)
    if len(tables.left_out) > 0:
        rest = np.empty(length, np.uint8)
        number = merge_long(rest, 0, leave_out(chunk, start, length, tables.left_out, rest), tables.merges, numbers)
    else:
        number = merge_long(chunk, start, length, tables.merges, numbers)
    write_ids(numbers, number, tables.ids, ids, count)
    if length <= MAX_REMEMBERED:
        remember(chunk, start, length, keys, piece, memory, ids, count, number)
    return number


@borrowing_kernel
def leave_out(chunk, start, length, left_out, rest):
    """Write the bytes of a piece that are not left out into `rest`, and return how many they are."""
    count = 0
    for place in range(start, start + length):
        if not left_out[chunk[place]]:
            rest[count] = chunk[place]
            count += 1
    return count


@borrowing_kernel
def write_ids(numbers, number, id_of, ids, count):
    """Write the ids of the first `number` of the token numbers."""
    for item in range(number):
        ids[count + item] = id_of[numbers[item]]


@borrowing_kernel
def find_next_door(lines, keys, piece):
    """Return the entry of a piece in the line next to its own; NO_ENTRY if it is not there."""
    low, high, line = keys[piece, 0], keys[piece, 1], np.int64(keys[piece, 2])
    if lines[line + ENTRY_WORDS + 1] == NONE:
        return NO_ENTRY  # nothing was sent there, as its own line has room
    for entry in range(line ^ LINE_WORDS, (line ^ LINE_WORDS) + LINE_WORDS, ENTRY_WORDS):
        if lines[entry] == low and lines[entry + 1] == high:
            return entry
    return NO_ENTRY


@borrowing_kernel
def recall(chunk, start, length, memory, entry, ids, count):
    """Copy the ids of a piece from its entry; return their number, NO_NUMBER if it is another with the same key."""
    lines, arena = memory.lines, memory.arena
    rest = lines[entry + 3]
    if rest < IN_ARENA:
        id_bits = 8 * ids.itemsize
        write_word(ids, count, lines[entry + 2])
        write_word(ids, count + 64 // id_bits, rest)
        return np.int64(rest >> (64 - id_bits))
    place, number = np.int64(lines[entry + 2]), np.int64((rest & ~IN_ARENA) >> _HALF)
    if length > MAX_EXACT:
        if np.int64(rest & _LOW_HALF) != length:
            return NO_NUMBER
        for byte in range(length):
            if arena[place + number + byte] != chunk[start + byte]:
                return NO_NUMBER
    for item in range(number):
        ids[count + item] = arena[place + item]
    return number


@borrowing_kernel
def remember(chunk, start, length, keys, piece, memory, ids, count, number):
    """Put a piece and its `number` ids, `ids[count:]`, into the cache.

    It replaces the previous entry there.
    """
    low, high, line = keys[piece, 0], keys[piece, 1], np.int64(keys[piece, 2])
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
    entry = entry_to_take(lines, line)
    lines[entry], lines[entry + 1], lines[entry + 2], lines[entry + 3] = low, high, first, rest


@borrowing_kernel
def entry_to_take(lines, line):
    """Return the entry for a new piece: a free one of its line, else of the next door's, else the second of its line.

    So the first entry stays with the piece that came first, likely a frequent one.
    """
    next_door = line ^ LINE_WORDS
    for entry in (line, line + ENTRY_WORDS, next_door, next_door + ENTRY_WORDS):
        if lines[entry + 1] == NONE:
            return entry
    return line + ENTRY_WORDS


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
