"""A pre-token as a key: two 64-bit words that tell it from every other, or nearly.

Texts are mostly short pre-tokens that come again and again. To know one again quickly, up to 15 bytes are not compared
byte by byte: the bytes themselves become two numbers, with the length in the last byte.

    " world"       20 77 6f 72 6c 64 00 00 │ 00 00 00 00 00 00 00 06
                   └──────── low ────────┘   └──────── high ───────┘     (the lowest byte of each is on the left)

Two short pre-tokens are equal if and only if their keys are; the length tells "a" from "a\\0". A longer one does not
fit. Its key is two hashes of its bytes, and the highest bit of `high`, which no length reaches, says so:

    " understanding…"    low: a hash of all bytes    high: another hash, with the highest bit set

Equal keys of long pre-tokens make it likely that they are equal; then their bytes must be compared. `high` is never
0, so 0 can mark an empty row of a table.

`hash_key` gives a key's position in a table: multiplication by an odd number is a permutation of the 64-bit numbers
that carries every bit into all higher ones (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
"""

import numpy as np

from transformerlm.tokenizer.kernels.intrinsics import read_word
from transformerlm.tokenizer.kernels.jit import borrowing_kernel

MAX_EXACT = 15
"""The longest pre-token whose key holds its bytes: two words, less the byte for the length."""

LONG = np.uint64(1 << 63)
"""The bit of `high` that marks the key of a longer pre-token."""

# The first three primes of xxHash64 (Collet, https://github.com/Cyan4973/xxHash): odd, with ones and zeros well mixed.
PRIME_1 = np.uint64(0x9E3779B185EBCA87)
PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
PRIME_3 = np.uint64(0x165667B19E3779F9)

ALL = np.uint64(2**64 - 1)
ALL_BUT_LAST = np.uint64(2**56 - 1)  # the bytes of `high` below the length
HALF = np.uint64(32)  # bits; a shift by it brings the upper half of a word, where products mix best, to the lower


@borrowing_kernel
def piece_key(buffer, start, length):
    """Return the key (low, high) of the pre-token `buffer[start : start + length]`, as two uint64.

    `length` is at least 1. At least 15 bytes must be readable behind the pre-token; their values do not matter.
    """
    if length > MAX_EXACT:
        return long_key(buffer, start, length)
    # The two shifts together drop the bytes behind the pre-token. Each is by less than 64, as the machine demands.
    low = read_word(buffer, start) & ALL >> 8 * (8 - min(length, 8))
    high = read_word(buffer, start + 8) & ALL_BUT_LAST >> 8 * (MAX_EXACT - max(length, 8))
    return low, high | np.uint64(length) << np.uint64(56)


@borrowing_kernel
def long_key(buffer, start, length):
    """Return the key of a pre-token of at least 8 bytes: two hashes of it, taken eight bytes at a time.

    The last eight may overlap those before. The hashes differ in their primes, and in how the bytes come in.
    """
    low = np.uint64(length) * PRIME_1
    high = np.uint64(length) * PRIME_2
    last = start + length - 8
    at = start
    while at < start + length:
        word = read_word(buffer, min(at, last))
        low = (low ^ word) * PRIME_1
        low ^= low >> HALF
        high = (high + word) * PRIME_3
        high ^= high >> HALF
        at += 8
    return low, high | LONG


@borrowing_kernel
def hash_key(low, high):
    """Return a hash of a key, uint64. Use its highest bits: they depend on all bits of the key."""
    mixed = (low ^ high * PRIME_2) * PRIME_1
    return (mixed ^ mixed >> HALF) * PRIME_3
