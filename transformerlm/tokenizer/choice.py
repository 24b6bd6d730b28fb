"""Which layer does the work: plain Python or compiled kernels. Only the time that it takes depends on the answer.

The compiled layer is a few dozen times as fast. But numba must be imported for it and the kernels be read from disk,
half a second's work, or even be compiled if this machine has not done so yet, which takes ten seconds or more.
"""

from typing import NamedTuple


class Threshold(NamedTuple):
    """Bytes that make it worth while to load kernels, and to compile them first."""

    to_load: int
    to_compile: int


TEXT = Threshold(to_load=1 << 20, to_compile=1 << 25)
"""Bytes of text to be encoded. Plain Python takes 0.2 s and 5 s for so many."""

CORPUS = Threshold(to_load=1 << 22, to_compile=1 << 25)
"""Bytes of text to be counted. Compiled counting begins to be faster at 4 MB, with all that is loaded for it."""

WORDS = Threshold(to_load=1 << 18, to_compile=1 << 20)
"""Bytes of distinct pre-tokens to learn merges from."""


def compiled_pays(size: int, threshold: Threshold, kernel: str) -> bool:
    """Return whether `size` bytes repay the compiled layer; `kernel` (`module.function`) is its main kernel for them.

    Never with NUMBA_DISABLE_JIT=1.
    """
    if size < threshold.to_load:
        return False
    from transformerlm.tokenizer.kernels import jit as compiling

    return compiling.available() and (size >= threshold.to_compile or compiling.is_kept(kernel))
