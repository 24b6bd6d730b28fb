r"""The scanner: where the pre-tokens of a text start, 64 bytes at a time.

A regular expression walks through a text character by character. But GPT-2's pattern

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

only depends on the class of each character and of its neighbours (letter, number, white space, other), and on whether
it is a space or an apostrophe. A mask holds such a property for 64 bytes in one machine word, bit i for byte i, and a
few operations process 64 bytes at once. (Here the first byte is on the left, and a dot is a 0. "space" is U+0020 alone,
"white" everything that `\s` matches.)

    text           H e l l o       y o u   a r e   4 2 .
    letter         1 1 1 1 1 . . . 1 1 1 . 1 1 1 . . . .
    number         . . . . . . . . . . . . . . . . 1 1 .
    white          . . . . . 1 1 1 . . . 1 . . . 1 . . .
    space          . . . . . 1 1 1 . . . 1 . . . 1 . . .
    other          . . . . . . . . . . . . . . . . . . 1

A run of a class starts where its mask has a 1 after a 0: `mask & ~(mask << 1)`, since a shift to the left (in the
picture, to the right) moves each bit to the byte after it. Pre-tokens follow from the runs by three rules:

    1. A run of letters, numbers or others is a pre-token and takes in one space before it (` ?\p{L}+` and so on). So it
       starts a pre-token unless a space precedes it.
    2. A run of white space starts a pre-token. If text follows the run, its last character starts another,
       since `\s+(?!\S)` leaves that character over: it is a pre-token of its own or, if it is a space, the space that
       rule 1 takes in.
    3. An apostrophe that rule 1 lets start a pre-token takes in `s t d m ll ve re` if they come next: letters that
       start no pre-token of their own. The next character starts one.

    text           H e l l o       y o u   a r e   4 2 .        d o n ' t !
    rule 1         1 . . . . . . . . . . . . . . . . . 1        1 . . 1 1 1
    rule 2, first  . . . . . 1 . . . . . 1 . . . 1 . . .        . . . . . .
    rule 2, last   . . . . . . . 1 . . . 1 . . . 1 . . .        . . . . . .
    rule 3                                                      . . . . 0 1
    starts         1 . . . . 1 . 1 . . . 1 . . . 1 . . 1        1 . . 1 . 1

    pre-tokens     "Hello" "  " " you" " are" " 42" "."         "don" "'t" "!"

Each block of 64 bytes passes to the next the classes of its last byte, and the starts that rule 3 adds and removes
among the next bytes. A block reads the bytes after it only to see whether white space continues, and for the letters
after an apostrophe. A character that is not ASCII is decoded and looked up, and all its bytes get its class; where a
block would end inside a character, it ends before it. A byte that is not UTF-8 counts as a character of the class
"other".

After the text, the buffer holds spaces. So no rule has to check for the end of the text: every text seems to be
followed by endless white space, which `(?!\S)` treats like the end.

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019) and its published code for the
pattern; Langdale and Lemire, "Parsing Gigabytes of JSON per Second" (2019), section 3, for masks over blocks.
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import BLOCK, classify, lowest_bit
from transformerlm.tokenizer.kernels.jit import borrowing_kernel
from transformerlm.tokenizer.unicode.classes import LETTER, NUMBER, OTHER, WHITE

PADDING = 2 * BLOCK
"""Spaces that must follow the text in its buffer: a block that begins in the text reads up to 63 bytes after it, and a
character may be looked up that begins after the block."""

LOOKAHEAD = 8
"""How many bytes, from a place on, decide whether a pre-token starts there: 6 at most, a white character of 3 bytes and
3 of the next that show whether it is white too; rounded up. Needed for scanning a text in parts."""

NONE, ONE, ALL = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)


@borrowing_kernel
def scan(buffer, length, classes, starts):
    """Write where the pre-tokens of `buffer[:length]` start into `starts`, ascending, and return how many there are.

    Args:
        buffer: uint8; the text, which begins with a pre-token, and after it at least `PADDING` spaces.
        length: bytes of text. If the whole text is longer and `buffer` holds only its beginning, what follows may
            change the starts among the last `LOOKAHEAD` bytes, but none before.
        classes: `unicode.classes.class_table()`, the class of every code point.
        starts: int64; room for `length` numbers.
    """
    found = 0
    # Carried from block to block: masks with the last byte in bit 0, and starts that rule 3 removes and adds.
    letter_before = number_before = other_before = white_before = space_before = NONE
    removed_next = added_next = NONE
    at = 0
    while at < length:
        letter, number, white, space, apostrophe, not_ascii = classify(buffer, at)
        size = min(BLOCK, length - at)
        ends_of_2 = ends_of_3 = NONE  # last bytes of white characters of two and three bytes; see rule 2
        if not_ascii != NONE:
            letter, number, white, ends_of_2, ends_of_3, size = add_characters(
                buffer, at, size, classes, letter, number, white, not_ascii
            )
        last = size - 1
        inside = ALL >> (BLOCK - size)
        letter &= inside
        number &= inside
        white &= inside
        other = ~(letter | number | white) & inside

        # Rule 1.
        starts_of_runs = letter & ~(letter << 1 | letter_before)
        starts_of_runs |= number & ~(number << 1 | number_before)
        starts_of_runs |= other & ~(other << 1 | other_before)
        rule_1 = starts_of_runs & ~(space << 1 | space_before)

        # Rule 2. A run's last byte is found first, then the first byte of the character that ends there.
        white_comes_next = np.uint64(character_at(buffer, at + size, classes)[0] == WHITE)
        ends_of_white_runs = white & ~(white >> 1 | white_comes_next << last)
        last_white = ends_of_white_runs & ~(ends_of_2 | ends_of_3)
        last_white |= (ends_of_white_runs & ends_of_2) >> 1 | (ends_of_white_runs & ends_of_3) >> 2
        rule_2 = white & ~(white << 1 | white_before) | last_white

        # Rule 3.
        removed, added = removed_next, added_next
        removed_next = added_next = NONE
        apostrophes = apostrophe & rule_1
        while apostrophes != NONE:
            bit = lowest_bit(apostrophes)
            apostrophes &= apostrophes - ONE  # clears the lowest set bit
            num_letters = letters_of_contraction(buffer, at + bit)
            if num_letters > 0:
                removed, removed_next = with_bit(removed, removed_next, bit + 1, size)
                added, added_next = with_bit(added, added_next, bit + 1 + num_letters, size)

        remaining = ((rule_1 | rule_2) & ~removed | added) & inside  # added starts may be after the text
        while remaining != NONE:
            starts[found] = at + lowest_bit(remaining)
            found += 1
            remaining &= remaining - ONE
        letter_before, number_before, other_before = letter >> last, number >> last, other >> last
        white_before, space_before = white >> last, space >> last & ONE  # space was not cut to the block
        at += size
    return found


@borrowing_kernel
def with_bit(mask, mask_of_next_block, bit, size):
    """Set `bit` in the first mask if it is within the block of `size` bytes, else in the second; return both masks."""
    if bit < size:
        return mask | ONE << bit, mask_of_next_block
    return mask, mask_of_next_block | ONE << (bit - size)


@borrowing_kernel
def letters_of_contraction(buffer, at):
    """Return how many letters belong to the apostrophe at `at`: 1 for s, t, d, m; 2 for ll, ve, re; else 0."""
    first, second = buffer[at + 1], buffer[at + 2]
    if first == ord("s") or first == ord("t") or first == ord("d") or first == ord("m"):
        return 1
    if first == ord("l") and second == ord("l"):
        return 2
    if (first == ord("v") or first == ord("r")) and second == ord("e"):
        return 2
    return 0


@borrowing_kernel
def add_characters(buffer, at, size, classes, letter, number, white, not_ascii):
    """Add the non-ASCII characters to the masks of the block at `at`, all bytes of each to the mask of its class.

    The class "other" has no mask: it is the rest.

    Returns the masks, then the masks of the last bytes of white characters of two and of three bytes, then the size
    of the block, which is smaller than before if it would end inside a character.
    """
    ends_of_2 = ends_of_3 = NONE
    while not_ascii != NONE:
        bit = lowest_bit(not_ascii)
        if bit >= size:
            break
        character_class, num_bytes = character_at(buffer, at + bit, classes)
        if bit + num_bytes > size:
            size = bit  # more than 60: only a block of 64 ends inside a character, since spaces follow the text
            break
        its_bytes = ((ONE << num_bytes) - ONE) << bit
        not_ascii &= ~its_bytes
        if character_class == LETTER:
            letter |= its_bytes
        elif character_class == NUMBER:
            number |= its_bytes
        elif character_class == WHITE:
            white |= its_bytes
            if num_bytes == 2:
                ends_of_2 |= ONE << (bit + 1)
            else:  # none has four
                ends_of_3 |= ONE << (bit + 2)
    return letter, number, white, ends_of_2, ends_of_3, size


@borrowing_kernel
def character_at(buffer, at, classes):
    """Return the class of the character at `at` and its length in bytes.

    A byte that does not start a well-formed character is "other" and one byte long. Overlong forms, surrogates and
    values above U+10FFFF are not well-formed (The Unicode Standard, section 3.9, table 3-7).
    """
    first = np.int64(buffer[at])
    if first < 0x80:
        return classes[first], 1
    if first < 0xC2 or first > 0xF4:
        return OTHER, 1
    second = np.int64(buffer[at + 1])
    if second & 0xC0 != 0x80:
        return OTHER, 1
    if first < 0xE0:
        return classes[(first & 0x1F) << 6 | second & 0x3F], 2
    third = np.int64(buffer[at + 2])
    if third & 0xC0 != 0x80:
        return OTHER, 1
    if first < 0xF0:
        code_point = (first & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F
        if code_point < 0x800 or 0xD800 <= code_point < 0xE000:
            return OTHER, 1
        return classes[code_point], 3
    fourth = np.int64(buffer[at + 3])
    if fourth & 0xC0 != 0x80:
        return OTHER, 1
    code_point = (first & 0x07) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | fourth & 0x3F
    if code_point < 0x10000 or code_point > 0x10FFFF:
        return OTHER, 1
    return classes[code_point], 4
