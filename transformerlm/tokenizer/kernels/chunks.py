"""Text in chunks: process a text of any length with a buffer of a few kilobytes.

    text       … rds of any length, and here they end in the middle of wor│ds, where the text goes on …
    chunk        └──────────────────── about 4 KB ────────────────────────┘
    buffer       rds of any length, and here they end in the middle of wor·················  spaces behind it
    pieces       rds│ of│ any│ length│,│ and│ …           │ middle│ of│ wor
    next chunk                                                        └─────────── begins with the unfinished piece

The text itself is only ever read by one copy, inside its bounds. Everything else reads the buffer, which ends in
spaces: so kernels need no bounds checks near the end of the text.

A chunk may end inside a pre-token. So the next one begins at the last start that text after this chunk cannot change.
This gives the pre-tokens of the whole text, since patterns have no lookbehind: the pre-tokens after a start do not
depend on the text before it. A chunk without such a start is inside one long pre-token, and is retried with twice the
length, which keeps the work linear.
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import read_word, write_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel, kernel
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import LOOKAHEAD, PADDING, scan
from transformerlm.tokenizer.kernels.pretokenize_regex import BEYOND, walk

CHUNK = 1 << 12
"""Bytes of a chunk: its text, starts and keys fit the processor's L1 cache (32 KB or more)."""

_EIGHT_SPACES = np.uint64(0x2020202020202020)


@kernel
def next_pieces(text, at, end, rules, buffer, starts):
    """Cut the pre-tokens of a chunk of `text[at:end]`, and return `buffer`, `starts` and how many are final.

    At least one is. Piece i is `buffer[starts[i] : starts[i + 1]]`, and the next chunk begins `starts[pieces]` bytes
    further on. The returned arrays are larger than the given ones if a single pre-token needs that.

    Args:
        text: uint8.
        at, end: int64; not the same.
        rules: `walker.Rules`.
        buffer: uint8; at least `CHUNK + PADDING` items.
        starts: int64; one item more than `buffer` has before its padding.
    """
    size = CHUNK
    while True:
        length = min(size, end - at)
        if length + PADDING > len(buffer):
            buffer = np.empty(length + PADDING, np.uint8)
            starts = np.empty(length + 1, np.int64)
        fill(buffer, text, at, length)
        if rules.points:
            bits = np.empty(length + BEYOND, np.uint8)
            pieces = walk(buffer, length, at + length == end, rules, bits, starts)
        else:
            pieces = scan_chunk(buffer, length, at + length == end, rules.classes, starts)
        if pieces > 0:
            return buffer, starts, pieces
        size *= 2


@borrowing_kernel
def fill(buffer, text, at, length):
    """Copy `text[at : at + length]` to the beginning of `buffer`, and `PADDING` spaces behind it."""
    done = 0
    while done + 8 <= length:
        write_word(buffer, done, read_word(text, at + done))
        done += 8
    while done < length:
        buffer[done] = text[at + done]
        done += 1
    for place in range(length, length + PADDING, 8):
        write_word(buffer, place, _EIGHT_SPACES)


@borrowing_kernel
def scan_chunk(buffer, length, is_end, classes, starts):
    """Return how many pre-tokens of the chunk `buffer[:length]` are final; piece i is `starts[i]` to `starts[i + 1]`.

    If `is_end`, the text ends here and all are final; else there may be none. `starts` has room for `length + 1`.
    """
    found = scan(buffer, length, classes, starts)
    if is_end:
        starts[found] = length
        return found
    last = found - 1
    while last > 0 and starts[last] > length - LOOKAHEAD:
        last -= 1
    return max(last, 0)
