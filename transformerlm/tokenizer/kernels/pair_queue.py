"""The queue of pairs: which pair is merged next, without keeping all pairs in order.

The next merge takes the most frequent pair. But counts change with every merge, and most of the pairs are too rare to
be merged ever, so that keeping all in order would be work for nothing. What helps is that the best count never rises:
merging a pair that occurs c times makes c new tokens at most, a new pair holds one of them in each of its occurrences,
and so occurs c times at most; and a pair without the new token can only lose occurrences.

So pairs wait in drawers according to their count, in no order. Only the drawer to which the best count has come down
is open, and its pairs are in a heap. When that is empty, the next drawer is opened.

    counts    …  904–907  900–903                         896–899           …  2                1
                 empty    open, its pairs in a heap:      closed               closed           closed
                                ("t", "h") 903            ("i", "n") 896       ("q", "a") 2     ("x", "q") 1
                    ("h", "e") 901    ("a", "n") 900      ("e", "r") 898       ("z", "z") 2     ("q", "z") 1

While a pair waits, its count may fall. Nothing is done about that. Each entry of the heap says with which count it
came; if the pair is at the top and has another count by now, it is put back with that. So a pair may come up too early,
never too late.

Of equally frequent pairs the one whose byte strings are greatest comes first. A token's `head`, its first eight bytes
as one number, tells most of them apart.

Source of the heap: Wegener, "Bottom-Up-Heapsort" (1993).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.jit import borrowing_kernel

NO_PAIR = -1

EXACT_COUNTS = 256
"""Counts below this have a drawer each. From there on, 128 drawers lie between a power of two and the next, so that
a drawer's counts differ by less than 1 in 128, and the heap stays small."""

NUM_DRAWERS = EXACT_COUNTS + 55 * (EXACT_COUNTS // 2)  # the greatest count, 2**63 - 1, is halved 55 times

HEAD_BYTES = 8
BITS_PER_BYTE = np.uint64(8)

TOKEN = np.dtype(
    [
        ("left", np.int32),  # the tokens it was merged from, if it is not a single byte
        ("right", np.int32),
        ("start", np.int64),  # where in the words its bytes can be read; not set for single bytes
        ("length", np.int64),  # in bytes
        ("head", np.uint64),  # its first eight bytes, the first highest; zeros behind a shorter token
    ]
)
PAIR = np.dtype([("left", np.int32), ("right", np.int32), ("count", np.int64)])
ENTRY = np.dtype([("count", np.int64), ("head", np.uint64), ("pair", np.int64)])  # `head` is that of the left token
STATUS = np.dtype([("in_heap", np.int64), ("open_drawer", np.int64)])


class PairQueue(NamedTuple):
    """The arrays of the queue. Each pair is in it once at most."""

    words: npt.NDArray[np.uint8]  # the words' bytes, in which those of the tokens are found
    tokens: npt.NDArray[np.void]  # TOKEN
    pairs: npt.NDArray[np.void]  # PAIR
    heap: npt.NDArray[np.void]  # ENTRY; as many as `pairs`
    drawers: npt.NDArray[np.int32]  # of each drawer the pair on top, or NO_PAIR
    below: npt.NDArray[np.int32]  # of each pair in a drawer the next below it, or NO_PAIR
    status: npt.NDArray[np.void]  # STATUS, one


def new_queue(words: npt.NDArray[np.uint8], tokens: npt.NDArray[np.void], num_pairs: int) -> PairQueue:
    """Return an empty queue with room for `num_pairs` pairs, all drawers closed."""
    return PairQueue(
        words=words,
        tokens=tokens,
        pairs=np.empty(num_pairs, PAIR),
        heap=np.empty(num_pairs, ENTRY),
        drawers=np.full(NUM_DRAWERS, NO_PAIR, np.int32),
        below=np.empty(num_pairs, np.int32),
        status=np.array([(0, NUM_DRAWERS)], STATUS),
    )


@borrowing_kernel
def put(queue, pair):
    """Put a pair into its drawer or, if that is open already, into the heap. A pair that does not occur is left out."""
    count = queue.pairs[pair].count
    if count == 0:
        return
    drawer = drawer_of(count)
    if drawer < queue.status[0].open_drawer:
        queue.below[pair] = queue.drawers[drawer]
        queue.drawers[drawer] = pair
    else:
        hole = queue.status[0].in_heap
        queue.status[0].in_heap += 1
        rise(queue, hole, count, queue.tokens[queue.pairs[pair].left].head, pair)


@borrowing_kernel
def take(queue):
    """Take the best pair out of the queue and return it; `NO_PAIR` if the queue is empty."""
    status = queue.status[0]
    while True:
        while status.in_heap == 0:
            if status.open_drawer == 0:
                return NO_PAIR
            open_next_drawer(queue)
        pair, count = queue.heap[0].pair, queue.heap[0].count
        remove_top(queue)
        if count == queue.pairs[pair].count:
            return pair
        put(queue, pair)


@borrowing_kernel
def drawer_of(count):
    """Return the drawer of a count: of a greater count, the same or a higher one."""
    halvings = 0
    while count >= EXACT_COUNTS:
        count >>= 1
        halvings += 1
    return count + halvings * (EXACT_COUNTS // 2)  # having been halved, a count is at least EXACT_COUNTS // 2


@borrowing_kernel
def open_next_drawer(queue):
    """Open the next lower drawer. Those of its pairs that belong to a still lower one by now go there."""
    queue.status[0].open_drawer -= 1
    drawer = queue.status[0].open_drawer
    pair = np.int64(queue.drawers[drawer])
    queue.drawers[drawer] = NO_PAIR
    while pair != NO_PAIR:
        below = np.int64(queue.below[pair])
        put(queue, pair)
        pair = below


@borrowing_kernel
def remove_top(queue):
    """Remove the best entry of the heap.

    The better child of the hole moves up into it, down to the bottom, where the heap's last entry fills the hole and
    rises. It came from the bottom, so it seldom rises far: cheaper than comparing it with the children at each step.
    """
    heap = queue.heap
    queue.status[0].in_heap -= 1
    size = queue.status[0].in_heap
    hole = 0
    while 2 * hole + 2 < size:
        child = 2 * hole + 1
        other, entry = heap[child + 1], heap[child]
        if is_better(queue, other.count, other.head, other.pair, entry.count, entry.head, entry.pair):
            child += 1
        heap[hole] = heap[child]
        hole = child
    if 2 * hole + 1 < size:
        heap[hole] = heap[2 * hole + 1]
        hole = 2 * hole + 1
    last = heap[size]
    rise(queue, hole, last.count, last.head, last.pair)


@borrowing_kernel
def rise(queue, hole, count, head, pair):
    """Write an entry into the heap: at `hole`, or above it where no parent is worse."""
    heap = queue.heap
    while hole > 0:
        parent = heap[(hole - 1) // 2]
        if not is_better(queue, count, head, pair, parent.count, parent.head, parent.pair):
            break
        heap[hole] = parent
        hole = (hole - 1) // 2
    heap[hole].count = count
    heap[hole].head = head
    heap[hole].pair = pair


@borrowing_kernel
def is_better(queue, count, head, pair, other_count, other_head, other):
    """Return whether the first of two pairs is merged before the other: greater in count, left token, right token."""
    if count != other_count:
        return count > other_count
    if head != other_head:
        return head > other_head
    left, other_left = queue.pairs[pair].left, queue.pairs[other].left
    if left != other_left:
        return is_greater(queue, left, other_left)
    return is_greater(queue, queue.pairs[pair].right, queue.pairs[other].right)


@borrowing_kernel
def is_greater(queue, token, other):
    """Return whether a token's byte string is greater than that of another."""
    first, second = queue.tokens[token], queue.tokens[other]
    if first.head != second.head:
        return first.head > second.head
    for at in range(HEAD_BYTES, min(first.length, second.length)):
        byte, other_byte = queue.words[first.start + at], queue.words[second.start + at]
        if byte != other_byte:
            return byte > other_byte
    return first.length > second.length  # one begins with the other; so also if a head's zeros are bytes of the token
