"""Which characters are letters, numbers and white space: a table with a class for every code point.

    code point     …  0x20  0x21  …  0x41  …  0x663  …  0x10ffff
    class            WHITE OTHER    LETTER   NUMBER       OTHER

These are the classes of `\\p{L}`, `\\p{N}` and `\\s` in the pre-tokenization pattern, in the version of Unicode that
`ranges` names, whatever version other packages have.

The successors of that pattern need more classes, and often a union of several. So the second table has bits:

    code point     …  0x0a              0x20   0x21   …  0x41     …  0x61   …  0x301
    bits              SPACE|LINE_BREAK  SPACE  OTHER     CAPITAL     SMALL     MARK
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from transformerlm.tokenizer.unicode.ranges import (
    CASELESS,
    LOWER_CASE,
    MARKS,
    NUMBERS,
    UPPER_CASE,
    WHITE_SPACE,
)

OTHER, LETTER, NUMBER, WHITE = (np.uint8(number) for number in range(4))

CAPITAL, SMALL, NEITHER, MARK, DIGIT, SPACE, LINE_BREAK, START = (np.uint8(1 << bit) for bit in range(8))
"""Bits of the second table: letters of upper or title case, of lower case, and of neither; marks; all of `\\p{N}`;
white space; line feed and carriage return. A character with no bit is `OTHER`. The last bit is not a class, see
`kernels.pretokenize_regex`."""

NUM_CODE_POINTS = 0x110000  # the last is U+10FFFF, as far as UTF-16 reaches


@cache
def class_table() -> NDArray[np.uint8]:
    """Return the class of every code point, read-only: uint8, shape (0x110000,). Surrogates are `OTHER`."""
    return _table({LETTER: f"{UPPER_CASE} {LOWER_CASE} {CASELESS}", NUMBER: NUMBERS, WHITE: WHITE_SPACE})


@cache
def fine_class_table() -> NDArray[np.uint8]:
    """Return the bits of every code point, read-only: uint8, shape (0x110000,). Surrogates are `OTHER`."""
    ranges = {CAPITAL: UPPER_CASE, SMALL: LOWER_CASE, NEITHER: CASELESS, MARK: MARKS, DIGIT: NUMBERS}
    return _table({**ranges, SPACE: WHITE_SPACE, SPACE | LINE_BREAK: "a d"})


def _table(ranges_of: dict[np.uint8, str]) -> NDArray[np.uint8]:
    table = np.full(NUM_CODE_POINTS, OTHER)
    for character_class, ranges in ranges_of.items():
        for ends in ranges.split():
            first, _, last = ends.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] = character_class
    table.flags.writeable = False
    return table
