"""Finding special tokens in a text.

    text          … the end.<|endoftext|>A new text with a < b, and …
    candidates    ·········1···1····················1·······         bytes with which a special token begins
                           ▲ this one is one

The places where a special token may begin are found 64 at a time and are few, because special tokens begin with rare
characters. At each candidate the special tokens are compared with the text, the longest first, so that the result is
the leftmost special token and, among several at that place, the longest.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.intrinsics import BLOCK, equal_bytes, lowest_bit
from transformerlm.tokenizer.kernels.jit import borrowing_kernel

NO_ID = np.int64(-1)
NONE, ONE, ALL = np.uint64(0), np.uint64(1), np.uint64(2**64 - 1)


class SpecialTokens(NamedTuple):
    """The special tokens one after another, the longest first; where each ends; its id; the bytes they begin with."""

    bytes_: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    first_bytes: npt.NDArray[np.uint8]


def special_tokens_of(id_of: Mapping[bytes, int]) -> SpecialTokens:
    """Return non-empty special tokens and their ids in the form that kernels take."""
    longest_first = sorted(id_of, key=len, reverse=True)
    return SpecialTokens(
        np.array(list(b"".join(longest_first)), np.uint8),
        np.cumsum([len(token) for token in longest_first], dtype=np.int64),
        np.array([id_of[token] for token in longest_first], np.int64),
        np.array(sorted({token[0] for token in longest_first}), np.uint8),
    )


@borrowing_kernel
def find_special_token(text, at, end, special_tokens):
    """Return start, end and id of the first special token in `text[at:end]`; (end, end, -1) for none."""
    bytes_, ends, ids, first_bytes = special_tokens
    if len(ends) == 0:
        return end, end, NO_ID
    while at < end:
        candidates = NONE
        if at + BLOCK <= len(text):
            for i in range(len(first_bytes)):
                candidates |= equal_bytes(text, at, first_bytes[i])
        else:
            candidates = ALL  # too near the end to look at a whole block: try everywhere
        while candidates != NONE:
            start = at + lowest_bit(candidates)
            if start >= end:
                break
            length, token = token_at(text, start, end, bytes_, ends)
            if length > 0:
                return start, start + length, ids[token]
            candidates &= candidates - ONE  # clears the lowest set bit
        at += BLOCK
    return end, end, NO_ID


@borrowing_kernel
def token_at(text, start, end, bytes_, ends):
    """Return length and number of the longest special token that `text[start:end]` begins with; length 0 for none."""
    first = 0
    for token in range(len(ends)):
        length = ends[token] - first
        same = 0
        while same < length and start + same < end and text[start + same] == bytes_[first + same]:
            same += 1
        if same == length:
            return length, token
        first = ends[token]
    return 0, 0
