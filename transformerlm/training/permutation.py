"""A seeded permutation that is computed, not stored."""

import numpy as np
import numpy.typing as npt

_FEISTEL_ROUNDS = 4  # Luby and Rackoff 1988: four rounds of a random function are indistinguishable from random


def permuted(numbers: npt.NDArray[np.int64], size: int, *, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return where a seeded permutation of range(size) sends `numbers`, all of them in range(size).

    A Feistel network permutes the numbers of 2b bits; a result of `size` or more goes through it again until
    it is smaller ("cycle walking": Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    keys = np.random.default_rng(seed).integers(0, 2**64, size=_FEISTEL_ROUNDS, dtype=np.uint64)
    result = np.asarray(numbers, dtype=np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of input reaches every bit of output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
