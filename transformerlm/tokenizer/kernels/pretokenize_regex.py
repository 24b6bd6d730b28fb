r"""The walker: where the pre-tokens start in the patterns of GPT-2's successors, one pre-token after another.

GPT-2's pattern only depends on a character and its neighbours, so the scanner finds the starts of 64 bytes at once. In
its successors a pre-token may depend on text far before or after it: numbers are split into groups of three digits from
their start, a run of white space is cut after its last line break, and in `o200k` a word of capitals ends elsewhere if
a small letter follows. So the walker goes from start to start, like a regular expression.

First each byte gets the bits of its character; the first byte of a character has one more, START. (The last row shows
the classes in regular-expression syntax; the bits are in `unicode.classes`.)

    text          D    o    n    '    t         é    t    é         1    2    ⏎
    bytes         1    1    1    1    1    1    2    1    2    1    1    1    1
    bits          \p{Lu} \p{Ll} …   0  …  \s   \p{Ll}, without START in the second byte          …   \s, line break

Then each alternative of a pattern is a run of bytes that have certain bits. The patterns differ in a few points, which
are the bits of `Rules.points`; `pretokenize` has the published patterns. `piece_end` checks the alternatives in their
order there.

A chunk may end before a pre-token is certain. So the walker records how far it looked for each: a pre-token is certain
if it needed no lookahead past the end of the chunk.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.jit import borrowing_kernel
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import character_at
from transformerlm.tokenizer.pretokenize import CL100K, GPT2, GPT2_DIGITS, LLAMA3, O200K, QWEN2, TEKKEN
from transformerlm.tokenizer.unicode.classes import (
    CAPITAL,
    DIGIT,
    LINE_BREAK,
    MARK,
    NEITHER,
    SMALL,
    SPACE,
    START,
    class_table,
    fine_class_table,
)

BEYOND = 8
"""Lookahead margin in bytes: a character, or a contraction."""

ANY_SIGN, ANY_CASE, LINE_BREAKS, WHOLE_END, WHOLE_BEFORE_DIGIT, CASES, CONTRACTIONS = (1 << bit for bit in range(7))
"""Options of a pattern, see `pretokenize`: a word takes in any one sign before it, not only a space; contractions may
be in capitals; line breaks stay with signs before them, and white space is cut after its last line break; white space
at the end of the text is whole; so is white space before a digit; words are cut by their case, and slashes stay with
the line breaks after signs; contractions then stay with their word (without `CASES`, they are words by themselves)."""

_SUCCESSOR = ANY_SIGN | ANY_CASE | LINE_BREAKS
_DIGITS_AND_POINTS = {
    GPT2: (0, 0),  # handled by the scanner, not the walker
    GPT2_DIGITS: (1, WHOLE_BEFORE_DIGIT),
    CL100K: (3, _SUCCESSOR | WHOLE_END),
    LLAMA3: (3, _SUCCESSOR),
    QWEN2: (1, _SUCCESSOR),
    O200K: (3, _SUCCESSOR | CASES | CONTRACTIONS),
    TEKKEN: (1, _SUCCESSOR | CASES),
}

LETTERS = CAPITAL | SMALL | NEITHER
NO_SIGN = LETTERS | DIGIT | SPACE
FRONT = CAPITAL | NEITHER | MARK
BACK = SMALL | NEITHER | MARK
NONE = np.uint8(0)


class Rules(NamedTuple):
    """A pre-tokenization pattern in the form that kernels take."""

    classes: npt.NDArray[np.uint8]
    """`unicode.classes.class_table()` for the scanner, `fine_class_table()` for the walker."""
    digits: int
    """The most digits of a pre-token."""
    points: int
    """Bits, see above; 0 for GPT-2's pattern, which the scanner handles."""


def rules_of(pattern: str) -> Rules:
    """Return the rules of one of `pretokenize.PATTERNS`."""
    digits, points = _DIGITS_AND_POINTS[pattern]
    return Rules(fine_class_table() if points else class_table(), digits, points)


@borrowing_kernel
def walk(buffer, length, is_end, rules, bits, starts):
    """Write where the pre-tokens of `buffer[:length]` start into `starts`, and return how many are certain.

    Piece i is `starts[i]` to `starts[i + 1]`. If `is_end`, the text ends here and all are certain.

    Args:
        buffer: uint8; the text, which begins with a pre-token, and after it at least `BEYOND` spaces.
        rules: `Rules`.
        bits: uint8; room for `length + BEYOND` of them.
        starts: int64; room for `length + 1` numbers.
    """
    write_bits(buffer, length, rules.classes, bits)
    at = found = 0
    while at < length:
        end, looked = piece_end(buffer, bits, at, length, rules.digits, rules.points)
        if not is_end and looked + BEYOND > length:
            break
        starts[found] = at
        found += 1
        at = end
    starts[found] = at
    return found


@borrowing_kernel
def write_bits(buffer, length, classes, bits):
    """Write the bits of each byte of the text into `bits`, and after them the bits of spaces, as in `buffer`."""
    at = 0
    while at < length:
        if buffer[at] < 0x80:
            bits[at] = classes[buffer[at]] | START
            at += 1
            continue
        of_character, size = character_at(buffer, at, classes)
        bits[at] = of_character | START
        for place in range(at + 1, at + size):
            bits[place] = of_character
        at += size
    for place in range(length, length + BEYOND):
        bits[place] = SPACE | START


@borrowing_kernel
def piece_end(buffer, bits, at, length, digits, points):
    """Return where the pre-token that starts at `at` ends, and the end of the furthest run that was looked at.

    Spaces follow the text, so only a run of white space has to check where the text ends.
    """
    if not points & CASES:
        end = contraction_end(buffer, at, points)
        if end > at:
            return end, end
    end, looked = word_end(buffer, bits, at, points)
    if end > at:
        return end, looked
    if bits[at] & DIGIT != NONE:
        end = at
        for _ in range(digits):
            end = character_end(bits, end) if bits[end] & DIGIT != NONE else end
        return end, end
    signs = at + 1 if buffer[at] == ord(" ") else at
    end = signs
    while bits[end] & NO_SIGN == NONE:
        end += 1
    if end > signs:
        while points & LINE_BREAKS and (bits[end] & LINE_BREAK != NONE or (points & CASES and buffer[end] == ord("/"))):
            end += 1
        return end, max(end, looked)
    return white_end(bits, at, length, points)


@borrowing_kernel
def character_end(bits, at):
    """Return where the character at `at` ends."""
    at += 1
    while bits[at] & START == NONE:
        at += 1
    return at


@borrowing_kernel
def contraction_end(buffer, at, points):
    """Return where the contraction ends whose apostrophe may be at `at`; `at` for none."""
    if buffer[at] != ord("'"):
        return at
    first, second = np.int64(buffer[at + 1]), np.int64(buffer[at + 2])
    if points & ANY_CASE:
        if first == 0xC5 and second == 0xBF:  # U+017F (ſ) case-folds to "s"
            return at + 3
        first, second = first | 0x20, second | 0x20  # in lower case; nothing but letters becomes a letter
    if first == ord("s") or first == ord("t") or first == ord("d") or first == ord("m"):
        return at + 2
    if first == ord("l") and second == ord("l"):
        return at + 3
    if (first == ord("v") or first == ord("r")) and second == ord("e"):
        return at + 3
    return at


@borrowing_kernel
def word_end(buffer, bits, at, points):
    """Return where the word ends that begins at `at`, maybe with a sign, and how far it looked; `at` for none."""
    start = at
    if bits[at] & LETTERS == NONE:
        takes_sign = bits[at] & (DIGIT | LINE_BREAK) == NONE if points & ANY_SIGN else buffer[at] == ord(" ")
        if not takes_sign:
            return at, at
        start = character_end(bits, at)
    if points & CASES:
        is_mark = bits[at] & MARK != NONE
        end, looked = cased_end(bits, start, is_mark)
        if end > start or is_mark:
            if points & CONTRACTIONS:
                end = contraction_end(buffer, end, points)
            return end, max(end, looked)
        return at, looked
    end = start
    while bits[end] & LETTERS != NONE:
        end += 1
    return (end, end) if end > start else (at, end)


@borrowing_kernel
def cased_end(bits, start, after_mark):
    """Return where the part from `start` on ends of a word of capitals, then small letters, and how far it looked.

    Letters that are neither, and marks, can be part of both: `[FRONT]*[BACK]+|[FRONT]+[BACK]*`. So without a small
    letter, the last of them ends the word, and if there is none, all capitals are the word. In that case a mark before
    `start` is a word by itself, matched by the first alternative.
    """
    front = last_of_both = start
    while bits[front] & FRONT != NONE:
        front += 1
        if bits[front - 1] & BACK != NONE:
            last_of_both = front
    if bits[front] & SMALL != NONE:
        while bits[front] & BACK != NONE:
            front += 1
        return front, front
    if last_of_both > start:
        return last_of_both, front
    return (start, front) if after_mark else (front, front)


@borrowing_kernel
def white_end(bits, at, length, points):
    """Return where the pre-token of white space that starts at `at` ends, and the end of the run."""
    end = last = after_break = at
    while end < length and bits[end] & SPACE != NONE:
        if bits[end] & START != NONE:
            last = end
        end += 1
        if bits[end - 1] & LINE_BREAK != NONE:
            after_break = end
    if end == length and points & WHOLE_END:
        return end, end
    if points & LINE_BREAKS and after_break > at:
        return after_break, end
    if end == length or last == at or (points & WHOLE_BEFORE_DIGIT and bits[end] & DIGIT != NONE):
        return end, end
    return last, end
