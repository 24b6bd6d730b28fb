"""Which characters are letters, numbers and white space: a table with a class for every code point.

    code point     …  0x20  0x21  …  0x41  …  0x663  …  0x10ffff
    class            WHITE OTHER    LETTER   NUMBER       OTHER

These are the classes of `\\p{L}`, `\\p{N}` and `\\s` in the pre-tokenization pattern, in the version of Unicode that
`unicode_ranges` names, whatever version other packages have.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from transformerlm.tokenizer.kernels.unicode_ranges import LETTERS, NUMBERS, WHITE_SPACE

OTHER, LETTER, NUMBER, WHITE = (np.uint8(number) for number in range(4))

NUM_CODE_POINTS = 0x110000  # the last is U+10FFFF, as far as UTF-16 reaches


@cache
def class_table() -> NDArray[np.uint8]:
    """Return the class of every code point, read-only: uint8, shape (0x110000,). Surrogates are `OTHER`."""
    table = np.full(NUM_CODE_POINTS, OTHER)
    for character_class, ranges in ((LETTER, LETTERS), (NUMBER, NUMBERS), (WHITE, WHITE_SPACE)):
        for ends in ranges.split():
            first, _, last = ends.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] = character_class
    table.flags.writeable = False
    return table
