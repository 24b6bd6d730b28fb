"""Counting pre-tokens: how often each distinct one occurs in a text.

The text is processed in chunks (see `chunks`), each in three passes:

    text ──fill, scan──▶ starts ──piece_key──▶ keys, and a row of the table for each ──▶ one more in that row

The first pass finds the pre-tokens. The second makes their keys and prefetches their table rows, so that the cache
misses overlap. The third counts.

The table is a hash table with open addressing: a pre-token is sought from the row that its hash names, row after row,
until the row that has its key or the first empty one. At most three quarters of the rows are in use; then a search
visits two and a half adjacent rows on average (Knuth). A row is four words:

    low   high   count   place        `high` is 0 only in an empty row

The key of a pre-token of up to 15 bytes contains its bytes. A longer one has its bytes in an arena, at `place`:

    arena   … │ length, 8 bytes │ bytes … │ length, 8 bytes │ bytes … │

So memory depends on the number of distinct pre-tokens, not on the size of the text. Each thread has its own table; the
tables are added up at the end.

Special tokens are cut out first. The parts between them are separate texts.

Source: Knuth, "The Art of Computer Programming", volume 3, section 6.4, algorithm L, for the table.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.chunks import CHUNK, next_pieces
from transformerlm.tokenizer.kernels.intrinsics import prefetch, read_word, write_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel, kernel
from transformerlm.tokenizer.kernels.keys import LONG, MAX_EXACT, hash_key, piece_key
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import PADDING
from transformerlm.tokenizer.kernels.pretokenize_regex import rules_of
from transformerlm.tokenizer.kernels.special_tokens import find_special_token, special_tokens_of
from transformerlm.tokenizer.pretokenize import GPT2
from transformerlm.tokenizer.validation import check_ends

FIRST_ROWS = 1 << 12  # 128 KB, which a small text does not outgrow
LENGTH_BYTES = 8  # of the length before each pre-token in the arena

LOW, HIGH, COUNT, PLACE = range(4)  # the words of a row
ROW_WORDS = 4
NEXT, NEXT_BYTE, NUM_ROWS, NUM_BYTES = range(4)  # where a kernel stopped, and how many rows and bytes the table needs
EMPTY, ONE = np.uint64(0), np.uint64(1)


class Table(NamedTuple):
    """The counts. The number of rows is a power of two; `used` is the number of rows and of arena bytes in use."""

    rows: npt.NDArray[np.uint64]
    arena: npt.NDArray[np.uint8]
    used: npt.NDArray[np.int64]


class Room(NamedTuple):
    """Buffers for counting a chunk, reused across calls."""

    buffer: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]  # for each piece the key, low and high, and the row from which it is sought


class Words(NamedTuple):
    """Distinct pre-tokens, concatenated, with the end and count of each."""

    bytes_: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, counts: Mapping[bytes, int]) -> "Words":
        """Return the pre-tokens of a dictionary."""
        lengths, numbers = map(len, counts), counts.values()
        return cls(
            np.frombuffer(bytearray(b"".join(counts)), np.uint8),
            np.cumsum(np.fromiter(lengths, np.int64, len(counts))),
            np.fromiter(numbers, np.int64, len(counts)),
        )

    def counter(self) -> Counter[bytes]:
        """Return the pre-tokens as a dictionary."""
        text, ends = self.bytes_.tobytes(), self.ends.tolist()
        pieces = (text[start:end] for start, end in pairwise([0, *ends]))
        return Counter(dict(zip(pieces, self.counts.tolist(), strict=True)))


@final
class PieceCounter:
    """Counts the pre-tokens of texts. A thread needs one of its own."""

    def __init__(self, special_tokens: Sequence[bytes] = ()) -> None:
        self._special_tokens = special_tokens_of(dict.fromkeys(special_tokens, 0))
        self._table = Table(
            np.zeros((FIRST_ROWS, ROW_WORDS), np.uint64), np.zeros(LENGTH_BYTES, np.uint8), np.zeros(2, np.int64)
        )
        self._room = Room(
            np.empty(CHUNK + PADDING, np.uint8), np.empty(CHUNK + 1, np.int64), np.empty((CHUNK, 3), np.uint64)
        )

    def count(self, data: bytes, ends: Sequence[int] | None = None) -> None:
        """Count the pre-tokens of the concatenated texts in `data`, which end at `ends`; by default one text.

        A byte that is not UTF-8 counts as a character of the class "other". Raises `TokenizerError` unless `ends`
        ascend to the end of `data`.
        """
        places = np.array([len(data)] if ends is None else ends, np.int64)
        check_ends(places, len(data))
        text = np.frombuffer(data, np.uint8)
        stop, rules = np.zeros(4, np.int64), rules_of(GPT2)
        while not count_texts(text, places, self._special_tokens, self._table, rules, self._room, stop):
            self._grow(stop)

    def add(self, table: Table) -> None:
        """Add the counts of another counter, given its `table`."""
        rows, arena, used = table
        other = Table(  # whose arrays may be read-only if they were sent
            np.require(rows, requirements="W"), np.require(arena, requirements="W"), np.require(used, requirements="W")
        )
        stop = np.zeros(4, np.int64)
        while not add_table(self._table, other, stop):
            self._grow(stop)

    def table(self) -> Table:
        """Return what was counted, without empty rows; it can be pickled."""
        rows, arena, used = self._table
        return Table(rows[rows[:, HIGH] != EMPTY], arena[: used[1]], used)

    def _grow(self, stop: npt.NDArray[np.int64]) -> None:
        """Make the table as large as `stop` says."""
        rows, arena, used = self._table
        while len(rows) < stop[NUM_ROWS]:
            larger_rows = np.zeros((2 * len(rows), ROW_WORDS), np.uint64)
            move_rows(rows, larger_rows)
            rows = larger_rows
        if len(arena) < stop[NUM_BYTES]:
            larger_arena = np.empty(2 * stop[NUM_BYTES], np.uint8)
            larger_arena[: used[1]] = arena[: used[1]]
            arena = larger_arena
        self._table = Table(rows, arena, used)

    def words(self) -> Words:
        """Return what was counted, in no particular order."""
        rows, arena, used = self._table
        num_bytes = size_of_words(rows, arena)
        words = Words(np.empty(num_bytes, np.uint8), np.empty(used[0], np.int64), np.empty(used[0], np.int64))
        write_words(rows, arena, words)
        return words


@kernel
def count_texts(data, ends, special_tokens, table, rules, room, stop):
    """Count the pre-tokens of the texts in `data`; return whether it is done.

    If not, the table must grow (see `has_room`), and the next call continues from there. `stop` begins as zeros.
    """
    buffer, starts, keys = room
    text, at = stop[NEXT], stop[NEXT_BYTE]
    while text < len(ends):
        special, special_end, _ = find_special_token(data, at, ends[text], special_tokens)
        while at < special:
            buffer, starts, pieces = next_pieces(data, at, special, rules, buffer, starts)
            if not has_room(table, pieces, starts[pieces], stop):
                stop[NEXT], stop[NEXT_BYTE] = text, at
                return False
            if pieces > len(keys):
                keys = np.empty((len(starts), 3), np.uint64)
            make_keys(buffer, starts, pieces, table.rows, keys)
            count_pieces(buffer, starts, pieces, keys, table)
            at += starts[pieces]
        at = special_end
        if special == ends[text]:
            text += 1
    return True


@borrowing_kernel
def has_room(table, pieces, length, stop):
    """Return whether the table has room for `pieces` more pieces of `length` bytes; say in `stop` what they need.

    Kernels do not grow the table themselves, because they must return only numbers to Python: to return an array, numba
    calls Python, which may raise an exception (Ctrl-C) that numba does not expect.
    """
    stop[NUM_ROWS] = (table.used[0] + pieces) * 4 // 3 + 1  # so that a quarter is empty
    # A piece in the arena has at least 16 bytes, so what it needs for its length is at most half of them.
    stop[NUM_BYTES] = table.used[1] + 2 * length
    return stop[NUM_ROWS] <= len(table.rows) and stop[NUM_BYTES] <= len(table.arena)


@borrowing_kernel
def make_keys(buffer, starts, pieces, rows, keys):
    """Write the key and the first row of each piece into `keys`, and prefetch the row."""
    mask = np.uint64(len(rows) - 1)
    for piece in range(pieces):
        start = starts[piece]
        low, high = piece_key(buffer, start, starts[piece + 1] - start)
        row = first_row(low, high, mask)
        prefetch(rows, np.int64(row) * ROW_WORDS)
        keys[piece, 0], keys[piece, 1], keys[piece, 2] = low, high, row


@borrowing_kernel
def first_row(low, high, mask):
    """Return the row from which a key is sought, in a table of `mask` + 1 rows: some of the hash's highest bits."""
    return hash_key(low, high) >> np.uint64(24) & mask


@borrowing_kernel
def count_pieces(buffer, starts, pieces, keys, table):
    """Add 1 to the count of each piece. The table must have room for them all."""
    rows = table.rows
    for piece in range(pieces):
        low, high = keys[piece, 0], keys[piece, 1]
        row = find_row(rows, low, high, keys[piece, 2])
        if rows[row, HIGH] != EMPTY and high < LONG:
            rows[row, COUNT] += ONE
        else:
            start = starts[piece]
            add_count(table, low, high, row, ONE, buffer, start, starts[piece + 1] - start)


@borrowing_kernel
def find_row(rows, low, high, row):
    """Return the first row from `row` on that has the key (low, high) or is empty."""
    mask = np.uint64(len(rows) - 1)
    while rows[row, HIGH] != EMPTY and (rows[row, HIGH] != high or rows[row, LOW] != low):
        row = row + ONE & mask
    return row


@borrowing_kernel
def add_count(table, low, high, row, count, buffer, start, length):
    """Add `count` to the count of the piece `buffer[start : start + length]`; its key is (low, high).

    It is sought from `row` on. The table must have room for it.
    """
    rows, arena, used = table
    row = find_row(rows, low, high, row)
    while rows[row, HIGH] >= LONG and not is_in_arena(arena, np.int64(rows[row, PLACE]), buffer, start, length):
        row = find_row(rows, low, high, row + ONE & np.uint64(len(rows) - 1))
    if rows[row, HIGH] != EMPTY:
        rows[row, COUNT] += count
        return
    rows[row, LOW], rows[row, HIGH], rows[row, COUNT] = low, high, count
    used[0] += 1
    if length > MAX_EXACT:
        place = used[1]
        rows[row, PLACE] = np.uint64(place)
        write_word(arena, place, np.uint64(length))
        for i in range(length):
            arena[place + LENGTH_BYTES + i] = buffer[start + i]
        used[1] += LENGTH_BYTES + length


@borrowing_kernel
def is_in_arena(arena, place, buffer, start, length):
    """Whether the piece at `place` of the arena is `buffer[start : start + length]`."""
    if np.int64(read_word(arena, place)) != length:
        return False
    same = 0
    while same < length and arena[place + LENGTH_BYTES + same] == buffer[start + same]:
        same += 1
    return same == length


@borrowing_kernel
def move_rows(rows, larger):
    """Put the rows of a table where they belong in a larger one."""
    mask = np.uint64(len(larger) - 1)
    for old in range(len(rows)):
        if rows[old, HIGH] != EMPTY:
            row = first_row(rows[old, LOW], rows[old, HIGH], mask)
            while larger[row, HIGH] != EMPTY:
                row = row + ONE & mask
            for word in range(ROW_WORDS):
                larger[row, word] = rows[old, word]


@kernel
def add_table(table, other, stop):
    """Add the counts of `other` to the table; return whether it is done, as `count_texts` does."""
    short = np.empty(2 * 8, np.uint8)
    mask = np.uint64(len(table.rows) - 1)
    for row in range(stop[NEXT], len(other.rows)):
        low, high, count = other.rows[row, LOW], other.rows[row, HIGH], other.rows[row, COUNT]
        if high != EMPTY:
            piece, start, length = piece_of(other.rows, row, other.arena, short)
            if not has_room(table, 1, length, stop):
                stop[NEXT] = row
                return False
            add_count(table, low, high, first_row(low, high, mask), count, piece, start, length)
    return True


@kernel
def piece_of(rows, row, arena, short):
    """Return an array with the piece of a row that is not empty, where it starts there, and its length.

    `short` is room for 16 bytes, in which a piece is put that is not in the arena.
    """
    if rows[row, HIGH] >= LONG:
        place = np.int64(rows[row, PLACE])
        return arena, place + LENGTH_BYTES, np.int64(read_word(arena, place))
    write_word(short, 0, rows[row, LOW])
    write_word(short, 8, rows[row, HIGH])
    return short, 0, np.int64(short[MAX_EXACT])


@kernel
def size_of_words(rows, arena):
    """Return how many bytes the pre-tokens of a table have together."""
    short = np.empty(2 * 8, np.uint8)
    size = 0
    for row in range(len(rows)):
        if rows[row, HIGH] != EMPTY:
            size += piece_of(rows, row, arena, short)[2]
    return size


@kernel
def write_words(rows, arena, words):
    """Write the pre-tokens of a table and their counts into `words`."""
    short = np.empty(2 * 8, np.uint8)
    at = number = 0
    for row in range(len(rows)):
        if rows[row, HIGH] != EMPTY:
            piece, start, length = piece_of(rows, row, arena, short)
            for i in range(length):
                words.bytes_[at + i] = piece[start + i]
            at += length
            words.ends[number] = at
            words.counts[number] = np.int64(rows[row, COUNT])
            number += 1
