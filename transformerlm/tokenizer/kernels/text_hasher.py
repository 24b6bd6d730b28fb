"""The text hasher: texts → a number each, the same for the same text; `databuilder.text_hash` finishes them.

A text is a row of eight-byte words, the last filled up with zeros, and its hash is a polynomial in them. All arithmetic
is modulo 2^64, as a processor does it anyway. What is added for a word does not depend on the words before it, so that
several are on their way at once.
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import read_word
from transformerlm.tokenizer.kernels.jit import kernel

WORD = 8


@kernel
def hash_texts(data, ends, base, factor, hashes):
    """Write into `hashes` the hash of each of the texts that `data` holds one after another.

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
