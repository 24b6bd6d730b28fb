r"""The cutter: a text → its documents, packed; `databuilder.readers.text` says what a document is.

    data      \nOne.\n<|endoftext|>\nTwo.\n<|endoftext|>\n<|endoftext|>Thr
    packed    One.Two.                         without separators, line breaks at both ends, empty documents
    ends          4   8                        and from the third separator on it has not been cut

All per-byte work is done while the document is in the processor's cache: finding the separator, checking UTF-8, copying
the text.
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import BLOCK, equal_bytes, lowest_bit, read_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel, kernel

WORD = 8
NONE, ONE = np.uint64(0), np.uint64(1)
_NOT_ASCII = np.uint64(0x8080808080808080)
_LINE_FEED, _CARRIAGE_RETURN = 10, 13


@kernel
def cut_documents(data, separator, limit, packed, ends):
    """Pack the documents of `data` that a separator ends and that begin before `limit`.

    Args:
        data: uint8, beginning at the start of a document.
        separator: uint8, not empty.
        limit: place in `data`.
        packed: uint8; at least as long as `data`.
        ends: int64; one item per separator at least; filled with the ends of the documents in `packed`.

    Returns how many documents were packed, how many were empty, where the first begins that was not cut, and whether
    all were UTF-8; if not, the rest says nothing.
    """
    count = empty = begin = size = 0
    while begin < limit:
        found = find(data, begin, separator)
        if found < 0:
            break
        low, high = begin, found
        while low < high and is_line_break(data[low]):
            low += 1
        while low < high and is_line_break(data[high - 1]):
            high -= 1
        begin = found + len(separator)
        if low == high:
            empty += 1
            continue
        if not is_utf8(data, low, high):
            return count, empty, begin, False
        packed[size : size + high - low] = data[low:high]
        size += high - low
        ends[count] = size
        count += 1
    return count, empty, begin, True


@borrowing_kernel
def find(data, at, separator):
    """Return the first position of `separator` in `data` at or after `at`; -1 if there is none."""
    last = len(data) - len(separator)
    while at <= last:
        if at + BLOCK > len(data):
            if matches(data, at, separator):
                return at
            at += 1
            continue
        candidates = equal_bytes(data, at, separator[0])
        while candidates != NONE:
            place = at + lowest_bit(candidates)
            if place <= last and matches(data, place, separator):
                return place
            candidates &= candidates - ONE  # clears the lowest set bit
        at += BLOCK
    return -1


@borrowing_kernel
def matches(data, at, separator):
    """Return whether `separator` is at `at`; `data` must be long enough for it."""
    same = 0
    while same < len(separator) and data[at + same] == separator[same]:
        same += 1
    return same == len(separator)


@borrowing_kernel
def is_line_break(byte):
    """Return whether a byte is one of those that do not belong to a document at its ends."""
    return byte in (_LINE_FEED, _CARRIAGE_RETURN)


@borrowing_kernel
def is_utf8(data, at, end):
    """Return whether `data[at:end]` is UTF-8 (RFC 3629, section 4)."""
    while at < end:
        if at + WORD <= end and read_word(data, at) & _NOT_ASCII == NONE:
            at += WORD
            continue
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        following = 1 + (lead >= 0xE0) + (lead >= 0xF0)
        if at + following > end:
            return False
        lowest = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        highest = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if data[at] < lowest or data[at] > highest:
            return False
        for place in range(at + 1, at + following):
            if data[place] & 0xC0 != 0x80:
                return False
        at += following
    return True
