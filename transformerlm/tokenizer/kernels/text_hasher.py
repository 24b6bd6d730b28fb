"""The text hasher: maps each text to a number, the same for equal texts; `databuilder.text_hash` finishes them.

A text is a sequence of eight-byte words, the last padded with zeros, and its hash is a polynomial in them. All
arithmetic is modulo 2^64, the processor's native arithmetic. The term for a word does not depend on earlier words, so
several are computed in parallel.
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import read_word
from transformerlm.tokenizer.kernels.jit import kernel

WORD = 8


@kernel
def hash_texts(data, ends, base, factor, hashes):
    """Write the hash of each of the concatenated texts in `data` into `hashes`.

    Args:
        data: uint8.
        ends: int64 of shape (texts,): where each of them ends, ascending.
        base, factor: uint64; odd.
        hashes: uint64 of shape (texts,).
    """
    begin = 0
    for text in range(len(ends)):
        end = ends[text]
        total, power = np.uint64(0), np.uint64(1)
        at = begin
        while at + WORD <= end:
            word = read_word(data, at)
            total += ((word ^ (word >> np.uint64(32))) * factor) * power
            power *= base
            at += WORD
        word = np.uint64(0)
        for byte in range(end - 1, at - 1, -1):
            word = (word << np.uint64(8)) | np.uint64(data[byte])
        total += ((word ^ (word >> np.uint64(32))) * factor) * power
        hashes[text] = total
        begin = end
