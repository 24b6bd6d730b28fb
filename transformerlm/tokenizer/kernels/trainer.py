"""Learning the merges: counted words → merges.

The kernels in `trainer_steps` update the words and the pairs, and `pair_queue` selects the next pair. This module
allocates their arrays and calls them repeatedly:

    words, counts ──▶ arrays, all pairs of bytes ──▶ some merges ──▶ larger arrays ──▶ merges as byte strings
                                                         ▲   progress, Ctrl-C  │
                                                         └─────────────────────┘

Kernels do not allocate arrays. When a merge might exceed an array's capacity, or some tenths of a second have passed,
the kernel returns; Python doubles the arrays that are too small, reports progress, and calls it again. So memory
depends on the corpus, not on `num_merges`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.pair_queue import HEAD_BYTES, NO_PAIR, TOKEN, new_queue
from transformerlm.tokenizer.kernels.trainer_steps import (
    NEIGHBOUR,
    NUM_BYTES,
    PLACE,
    SIZES,
    SLICE,
    Training,
    add_byte_pairs,
    count_byte_pairs,
    enter_all_pairs,
    lay_out,
    make_merges,
)
from transformerlm.utils.errors import TokenizerError

MAX_PLACES = 2**31 - 1
"""Places are kept as 32-bit numbers, which halves the lists of places, the second largest array."""


def learn_merges_compiled(
    words: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    num_merges: int,
    progress: Callable[[float], None] | None = None,
) -> list[tuple[bytes, bytes]]:
    """Return up to `num_merges` merges of the most frequent pair; fewer if no pairs are left.

    Among equally frequent pairs the lexicographically greatest pair of byte strings is merged. The order of the words
    does not matter.

    Args:
        words: the bytes of the distinct pre-tokens, one after another.
        ends: of each word, where it ends in `words`.
        counts: of each word, how often it occurs; 0 is allowed.
        num_merges: the maximum number of merges to learn. Memory is bounded by the words, not by this number.
        progress: called several times per second with the fraction of merges done.

    Raises:
        TokenizerError: the distinct words have 2 GiB or more, or the words as often as they occur 2**62 bytes or more.
        ValueError: `ends` or `counts` do not fit `words`.
    """
    # Numba would compile a kernel again for read-only arrays.
    words = np.require(words, np.uint8, ["C", "W"])
    ends, counts = np.require(ends, np.int64, ["C", "W"]), np.require(counts, np.int64, ["C", "W"])
    lengths = np.diff(ends, prepend=0)
    _check(words, lengths, counts)
    most = int(np.maximum(lengths - 1, 0).sum())  # each merge takes a token away from some word, and each keeps one
    training = _start(words, ends, counts, max(0, min(num_merges, most)))
    num_tokens = len(training.tokens)
    sizes = training.sizes[0]
    while sizes["tokens"] < num_tokens:
        new_places = make_merges(training, num_tokens)
        if new_places == NO_PAIR:
            break
        training = _with_room(training, new_places)
        if progress:
            progress(float((sizes["tokens"] - NUM_BYTES) / (num_tokens - NUM_BYTES)))
    if progress:
        progress(1.0)
    return _merges(training.tokens[NUM_BYTES : sizes["tokens"]])


def _check(words: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
    if len(lengths) != len(counts) or np.any(counts < 0):
        raise ValueError("each word needs a count of 0 or more")
    if np.any(lengths < 0) or lengths.sum() != len(words):
        raise ValueError("the ends of the words must ascend to the number of their bytes")
    if len(words) + len(lengths) >= MAX_PLACES:
        raise TokenizerError(
            f"the corpus has {len(lengths):,} distinct words of {len(words):,} bytes in all, "
            "more than the 2 GiB that a training can hold; train on a part of it"
        )
    if (counts * lengths.astype(np.float64)).sum() >= 2.0**62:
        raise TokenizerError("the corpus has 2**62 bytes or more, which is too many to count; train on a part of it")


def _start(
    words: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], num_merges: int
) -> Training:
    """Lay out the words and return a training with all pairs of bytes in its queue."""
    places = np.empty(len(words) + len(ends) + 1, PLACE)
    lay_out(words, ends, places)
    byte_pairs = np.zeros(NUM_BYTES**2, NEIGHBOUR)
    count_byte_pairs(places, counts, byte_pairs)
    num_pairs = int(np.count_nonzero(byte_pairs["places"]))
    tokens = np.zeros(NUM_BYTES + num_merges, TOKEN)
    tokens["length"][:NUM_BYTES] = 1
    tokens["head"][:NUM_BYTES] = np.arange(NUM_BYTES, dtype=np.uint64) << np.uint64(8 * (HEAD_BYTES - 1))
    training = Training(
        words=words,
        counts=counts,
        places=places,
        tokens=tokens,
        lists=np.empty(2 * byte_pairs["places"].sum(), np.int32),
        slices=np.empty(num_pairs, SLICE),
        table=_empty_table(num_pairs),
        queue=new_queue(words, tokens, num_pairs),
        sizes=np.array([(NUM_BYTES, 0, 0)], SIZES),
        before=np.zeros(len(tokens), NEIGHBOUR),
        after=np.zeros(len(tokens), NEIGHBOUR),
        found_before=np.empty(len(tokens), np.int32),
        found_after=np.empty(len(tokens), np.int32),
    )
    add_byte_pairs(training, byte_pairs)
    return training


def _empty_table(num_pairs: int) -> npt.NDArray[np.int32]:
    """Return a hash table without pairs that is half full at most with `num_pairs`; its size is a power of two."""
    return np.full(1 << (2 * num_pairs).bit_length(), NO_PAIR, np.int32)


def _with_room(training: Training, new_places: int) -> Training:
    """Return the training with room for `new_places` more places, and for the pairs that these can form."""
    sizes, queue = training.sizes[0], training.queue
    training = training._replace(lists=_grown(training.lists, sizes["listed"], new_places))
    new_pairs = min(new_places, 2 * int(sizes["tokens"]))  # one with each token on each side
    if sizes["pairs"] + new_pairs <= len(queue.pairs):
        return training
    pairs = _grown(queue.pairs, sizes["pairs"], new_pairs)
    num_pairs = len(pairs)
    queue = queue._replace(
        pairs=pairs,
        heap=_copy(queue.heap, queue.status[0]["in_heap"], num_pairs),
        below=_copy(queue.below, sizes["pairs"], num_pairs),
    )
    slices = _copy(training.slices, sizes["pairs"], num_pairs)
    training = training._replace(queue=queue, slices=slices)
    if 2 * num_pairs > len(training.table):
        training = training._replace(table=_empty_table(num_pairs))
        enter_all_pairs(training)
    return training


def _grown(array: np.ndarray, used: int, more: int) -> np.ndarray:
    """Return the array if it has room for `more` items behind those used, else a copy twice as large or larger."""
    return array if used + more <= len(array) else _copy(array, used, max(used + more, 2 * len(array)))


def _copy(array: np.ndarray, used: int, size: int) -> np.ndarray:
    larger = np.empty(size, array.dtype)
    larger[:used] = array[:used]
    return larger


def _merges(products: npt.NDArray[np.void]) -> list[tuple[bytes, bytes]]:
    tokens = [bytes([byte]) for byte in range(NUM_BYTES)]
    merges = []
    for left, right in zip(products["left"].tolist(), products["right"].tolist(), strict=True):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return merges
