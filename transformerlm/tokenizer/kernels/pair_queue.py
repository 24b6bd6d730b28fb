"""The bucket queue of pairs: finds the next pair to merge without keeping all pairs sorted.

The next merge takes the most frequent pair. But counts change with every merge, and most pairs are too rare ever to be
merged, so keeping all of them sorted would be wasted work. Instead, we use that the best count never rises: merging a
pair that occurs c times makes at most c new tokens; each occurrence of a new pair contains one of them, so it occurs at
most c times; and a pair without the new token can only lose occurrences.

So pairs are kept in buckets by count ("drawers"), unsorted. Only the drawer of the best count is open, and its pairs
are in a heap. When the heap is empty, the next drawer is opened.

    counts    …  904–907  900–903                         896–899           …  2                1
                 empty    open, its pairs in a heap:      closed               closed           closed
                                ("t", "h") 903            ("i", "n") 896       ("q", "a") 2     ("x", "q") 1
                    ("h", "e") 901    ("a", "n") 900      ("e", "r") 898       ("z", "z") 2     ("q", "z") 1

The count of a queued pair may fall without an update. Each heap entry records the count at insertion; if it is outdated
when the pair reaches the top, the pair is pushed back with the current count. So a pair may reach the top too early,
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
"""Counts below this have a drawer each. Above, there are 128 drawers per power of two, so a drawer's counts differ by
less than 1 in 128, and the heap stays small."""

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
ENTRY = np.dtype([("count", np.int64), ("head", np.uint64), ("pair", np.int64)])  # `head` of the left token
STATUS = np.dtype([("in_heap", np.int64), ("open_drawer", np.int64)])


class PairQueue(NamedTuple):
    """The arrays of the queue. Each pair is in it once at most."""

    words: npt.NDArray[np.uint8]  # the words' bytes, which contain the tokens' bytes
    tokens: npt.NDArray[np.void]  # TOKEN
    pairs: npt.NDArray[np.void]  # PAIR
    heap: npt.NDArray[np.void]  # ENTRY; as many as `pairs`
    drawers: npt.NDArray[np.int32]  # the top pair of each drawer, or NO_PAIR
    below: npt.NDArray[np.int32]  # the pair below each pair in a drawer, or NO_PAIR
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
    """Put a pair into its drawer or, if that is open already, into the heap. A pair with count 0 is left out."""
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
    """Return the drawer of a count; it does not decrease with the count."""
    halvings = 0
    while count >= EXACT_COUNTS:
        count >>= 1
        halvings += 1
    return count + halvings * (EXACT_COUNTS // 2)  # having been halved, a count is at least EXACT_COUNTS // 2


@borrowing_kernel
def open_next_drawer(queue):
    """Open the next lower drawer; pairs whose count has fallen further move to their own drawer."""
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
    rises. That entry came from the bottom, so it seldom rises far; this is cheaper than comparing it with the children
    at each step.
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
    """Return whether the first token's byte string is greater than the second's."""
    first, second = queue.tokens[token], queue.tokens[other]
    if first.head != second.head:
        return first.head > second.head
    for at in range(HEAD_BYTES, min(first.length, second.length)):
        byte, other_byte = queue.words[first.start + at], queue.words[second.start + at]
        if byte != other_byte:
            return byte > other_byte
    return first.length > second.length  # one begins with the other; so also if a head's zeros are bytes of the token
