"""The hash of a document's text, which gives its position in the shuffled output and its side of the split.

    text      O n c e _ u p o n   _ a _ t i m e ,   _ t h e r e 0 0       words of eight bytes, w₀ w₁ w₂
    sum       g(w₀) + g(w₁) b + g(w₂) b² + …          modulo 2⁶⁴          g(w) = f · (w xor w / 2³²)
    hash      mixed(sum + length)                                         SplitMix64

A cryptographic hash would take ten times as long, half of the tokenizer's time. This one is not collision-resistant:
colliding documents merely end up adjacent and on the same side.
"""

from itertools import pairwise
from typing import final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_WORD = 8
_BASE = 0x9FB21C651E98DF25
_FACTOR = 0xD6E8FEB86659FD93
_MODULUS = 1 << 64
_WORDS_PER_BLOCK = 1 << 12
_POWERS = np.cumprod(np.array([1] + [_BASE] * (_WORDS_PER_BLOCK - 1), np.uint64))


@final
class TextHash:
    """The hash of a text that arrives in parts."""

    def __init__(self) -> None:
        self._sum = 0
        self._power = 1
        self._rest = b""
        self._length = 0

    def update(self, data: bytes) -> None:
        """Append a part."""
        self._length += len(data)
        data = self._rest + data
        whole = len(data) // _WORD * _WORD
        for first in range(0, whole, _WORD * _WORDS_PER_BLOCK):
            self._add(data[first : min(first + _WORD * _WORDS_PER_BLOCK, whole)])
        self._rest = data[whole:]

    def value(self) -> Hashes:
        """Return the hash of the whole text, shape (1,)."""
        self._add(self._rest.ljust(_WORD, b"\0"))
        return finished(np.array([self._sum], np.uint64), np.array([self._length]))

    def _add(self, data: bytes) -> None:
        self._sum = (self._sum + _sum(data) * self._power) % _MODULUS
        self._power = self._power * pow(_BASE, len(data) // _WORD, _MODULUS) % _MODULUS


def _sum(data: bytes) -> int:
    """Return the polynomial sum over the words of `data`, at most `_WORDS_PER_BLOCK`."""
    words = np.frombuffer(data, "<u8")
    return int(np.dot((words ^ (words >> np.uint64(32))) * np.uint64(_FACTOR), _POWERS[: len(words)]))


def hash_texts(data: bytes, ends: npt.NDArray[np.int64], *, compiled: bool) -> Hashes:
    """Return the hash of each text in `data`, a concatenation of texts that end at `ends`.

    With `compiled`, a kernel does it, with the same result.
    """
    if not compiled:
        texts = (data[begin:end] for begin, end in pairwise([0, *ends.tolist()]))
        return np.concatenate([_hash_text(text) for text in texts])
    from transformerlm.tokenizer.kernels.text_hasher import hash_texts as kernel  # imported here: numba loads slowly

    sums = np.empty(len(ends), np.uint64)
    kernel(np.frombuffer(data, np.uint8), ends, np.uint64(_BASE), np.uint64(_FACTOR), sums)
    return finished(sums, np.diff(ends, prepend=0))


def _hash_text(text: bytes) -> Hashes:
    if len(text) < _WORD * _WORDS_PER_BLOCK:
        total = _sum(text.ljust(-(-len(text) // _WORD) * _WORD, b"\0"))
        return finished(np.array([total], np.uint64), np.array([len(text)]))
    hashed = TextHash()
    hashed.update(text)
    return hashed.value()


def finished(sums: Hashes, lengths: npt.NDArray[np.int64]) -> Hashes:
    """Return the hashes of texts from their polynomial sums and lengths."""
    return mixed(sums + lengths.astype(np.uint64))


def mixed(values: Hashes) -> Hashes:
    """Apply the mixing function of SplitMix64 (Steele, Lea and Flood 2014): each input bit affects all output bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
