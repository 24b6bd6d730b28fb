"""The steps of a training: each merge touches only the places of its pair.

A word is a distinct pre-token, with the number of times that it occurs. All words are in one flat array, with a place
for each byte and one before each word. A token's number is written at its first and last byte. So the token at place p,
n bytes long, has its neighbours at p - 1 and p + n, and two are joined without moving anything:

    place            0   1   2   3   4   5   6   7   8   9
    at first         |   l   o   w   |   l   o   w   e   |          the words "low" and "lowe"
    "l" "o" → 256    |  256 256  w   |  256 256  w   e   |
    256 "w" → 257    |  257  .  257  |  257  .  257  e   |          places inside a token are never read

The places of a pair (the places of its left tokens, ascending) are a slice of one long list:

    pair             "l" "o"   "o" "w"   "w" "e"   256 "w"   257 "e"
    its places        1   5     2   6     7         1   5     5

A slice is written once, because new places of a pair appear in one merge only: the one that made the later of its two
tokens (or at the start, if both are bytes). No later merge makes either token, so the pair gets no places after that.

No two merges make the same bytes, either. If the bytes s became one token in some place, they did so in the same merge
wherever no token crosses the ends of s, because merges inside s do not depend on anything outside. And where two tokens
are about to be joined to s, no token has ever crossed its ends, because tokens only grow. So different tokens have
different bytes, and no two pairs are equal in the order of their byte strings.

But pairs vanish from places, when one of their tokens is merged with its other neighbour. Such a place stays in the
slice and is skipped, because it has another number. (It cannot match by accident: a token starts at a pair's place, and
once none does, a later token's number or `INSIDE` has been written there.)

A merge takes the best pair from the queue (`pair_queue`) and then goes through its places, in four steps:

    join     write the new token's number over both
    tally    for each neighbour of the new token: how often is it one?
    renew    for each such neighbour: less of its pair with the old token, and a new pair with the new token
    list     write the new pairs' places into their slices

The reference, which does the same with lists and dicts, is `transformerlm.tokenizer.bpe.learn_merges`.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), section 3.2.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.tokenizer.kernels.intrinsics import prefetch
from transformerlm.tokenizer.kernels.jit import borrowing_kernel
from transformerlm.tokenizer.kernels.pair_queue import (
    BITS_PER_BYTE,
    HEAD_BYTES,
    NO_PAIR,
    PairQueue,
    put,
    take,
)

NO_TOKEN, INSIDE = -1, -2  # at a place: between two words; where the right half of a token began
NUM_BYTES = 256

VISITS_PER_CALL = 1 << 22
"""Places that a kernel visits before it returns to Python, for progress and Ctrl-C: some tenths of a second."""

VISITS_PER_MERGE = 64  # fixed cost of a merge, in visits

LOOKAHEAD = 12  # places prefetched ahead: about as many as are visited during a cache miss

MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: products with it differ in their high bits
HALF_WORD = np.uint64(32)

PLACE = np.dtype([("token", np.int32), ("word", np.int32)])
SLICE = np.dtype([("first", np.int64), ("size", np.int64)])
NEIGHBOUR = np.dtype([("count", np.int64), ("places", np.int64), ("next", np.int64)])
SIZES = np.dtype([("tokens", np.int64), ("pairs", np.int64), ("listed", np.int64)])


class Training(NamedTuple):
    """The arrays of a training; the kernels change them, and Python replaces those that have become too small."""

    words: npt.NDArray[np.uint8]  # the bytes of all words
    counts: npt.NDArray[np.int64]  # of each word, how often it occurs
    places: npt.NDArray[np.void]  # PLACE
    tokens: npt.NDArray[np.void]  # TOKEN: the 256 bytes, then the merged tokens
    lists: npt.NDArray[np.int32]  # the places of all pairs
    slices: npt.NDArray[np.void]  # SLICE: each pair's part of `lists`
    table: npt.NDArray[np.int32]  # hash table: two tokens → their pair, or NO_PAIR
    queue: PairQueue  # and the pairs
    sizes: npt.NDArray[np.void]  # SIZES, one: how much of the arrays is in use
    # Of the tokens on either side of the new one, while it is made: how often, in how many places, and where in `lists`
    # the next of them goes; then which tokens these are.
    before: npt.NDArray[np.void]  # NEIGHBOUR, for each token
    after: npt.NDArray[np.void]
    found_before: npt.NDArray[np.int32]
    found_after: npt.NDArray[np.int32]


@borrowing_kernel
def lay_out(words, ends, places):
    """Write the bytes of the words into `places`, with `NO_TOKEN` before, between and behind the words."""
    at = place = 0
    for word in range(len(ends)):
        places[place].token = NO_TOKEN
        place += 1
        while at < ends[word]:
            places[place].token = words[at]
            places[place].word = word
            place += 1
            at += 1
    places[place].token = NO_TOKEN


@borrowing_kernel
def count_byte_pairs(places, counts, byte_pairs):
    """Count all pairs of bytes; the pair (left, right) has index 256 * left + right."""
    for place in range(len(places) - 1):
        left, right = places[place].token, places[place + 1].token
        if left != NO_TOKEN and right != NO_TOKEN:
            pair = byte_pairs[left * NUM_BYTES + right]
            pair.count += counts[places[place].word]
            pair.places += 1


@borrowing_kernel
def add_byte_pairs(training, byte_pairs):
    """Add the pairs of bytes, as counted, and list their places."""
    for number in range(len(byte_pairs)):
        if byte_pairs[number].places > 0:
            add_pair(training, np.int32(number // NUM_BYTES), np.int32(number % NUM_BYTES), byte_pairs[number])
    places = training.places
    for place in range(len(places) - 1):
        left, right = places[place].token, places[place + 1].token
        if left != NO_TOKEN and right != NO_TOKEN:
            list_place(training.lists, byte_pairs[left * NUM_BYTES + right], place)


@borrowing_kernel
def make_merges(training, num_tokens):
    """Merge until there are `num_tokens` tokens, or for a while.

    Returns how many new places the next merge may have to list, which may be more than there is room for; `NO_PAIR`
    if no pair is left.
    """
    sizes = training.sizes[0]
    visits = 0
    while sizes.tokens < num_tokens:
        pair = take(training.queue)
        if pair == NO_PAIR:
            return NO_PAIR
        size = training.slices[pair].size
        has_room = sizes.listed + 2 * size <= len(training.lists)  # a new pair on each side of each new token
        has_room &= sizes.pairs + min(2 * size, 2 * sizes.tokens) <= len(training.queue.pairs)
        if visits > VISITS_PER_CALL or not has_room:
            put(training.queue, pair)
            return 2 * size
        merge(training, pair)
        visits += size + VISITS_PER_MERGE
    return 0


@borrowing_kernel
def merge(training, pair):
    """Merge a pair everywhere."""
    product = np.int32(training.sizes[0].tokens)
    first, size = training.slices[pair].first, training.slices[pair].size
    left, right = training.queue.pairs[pair].left, training.queue.pairs[pair].right
    places = training.lists[first : first + size]
    places = places[: join(training, places, left, right, product)]
    add_token(training, left, right, places[0])
    num_before, num_after = tally(training, places, product)
    for found in range(num_before):
        token = training.found_before[found]
        # Between two adjacent new tokens, the old pair was (right, left).
        old_token = right if token == product else token
        renew(training, training.before[token], old_token, left, token, product)
    for found in range(num_after):
        token = training.found_after[found]
        renew(training, training.after[token], right, token, product, token)
    list_places(training, places, product)
    training.queue.pairs[pair].count = 0  # none is left


@borrowing_kernel
def join(training, listed, left, right, product):
    """Step 1: write `product` over `left` and `right` at each listed place that still has them.

    These places are moved to the front of `listed`, which is not read again, and their number is returned. Works from
    left to right, so in "aaa" the first two are joined.
    """
    places = training.places
    length_left = training.tokens[left].length
    length = length_left + training.tokens[right].length
    joined = 0
    for index in range(len(listed)):
        prefetch(places, np.int64(listed[min(index + LOOKAHEAD, len(listed) - 1)]))
        place = np.int64(listed[index])
        if places[place].token == left and places[place + length_left].token == right:
            places[place + length_left].token = INSIDE
            places[place].token = places[place + length - 1].token = product
            listed[joined] = place
            joined += 1
    return joined


@borrowing_kernel
def add_token(training, left, right, place):
    """Add the token that has just been made, at `place` for one, of `left` and `right`."""
    token = training.tokens[training.sizes[0].tokens]
    training.sizes[0].tokens += 1
    token.left, token.right = left, right
    token.length = training.tokens[left].length + training.tokens[right].length
    token.start = place - training.places[place].word - 1  # the place before each word is not a byte
    head = np.uint64(0)
    for at in range(HEAD_BYTES):
        byte = training.words[token.start + at] if at < token.length else np.uint8(0)
        head = head << BITS_PER_BYTE | np.uint64(byte)
    token.head = head


@borrowing_kernel
def neighbours(training, place, product):
    """Return the tokens before and after the new token at `place`, or `NO_TOKEN`.

    After it, another new token counts as `NO_TOKEN`, or their pair would be counted twice.
    """
    before = training.places[place - 1].token
    after = training.places[place + training.tokens[product].length].token
    return before, NO_TOKEN if after == product else after


@borrowing_kernel
def tally(training, listed, product):
    """Step 2: count the neighbours of the new tokens, and return how many different ones are before and after."""
    num_before = num_after = 0
    for index in range(len(listed)):
        place = np.int64(listed[index])
        count = training.counts[training.places[place].word]
        before, after = neighbours(training, place, product)
        if before != NO_TOKEN:
            num_before = add_neighbour(training.before, training.found_before, num_before, before, count)
        if after != NO_TOKEN:
            num_after = add_neighbour(training.after, training.found_after, num_after, after, count)
    return num_before, num_after


@borrowing_kernel
def add_neighbour(sides, found, num_found, token, count):
    """Count a neighbour, in a word that occurs `count` times; return how many are found now."""
    if sides[token].places == 0:
        found[num_found] = token
        num_found += 1
    sides[token].count += count
    sides[token].places += 1
    return num_found


@borrowing_kernel
def renew(training, neighbour, old_left, old_right, left, right):
    """Step 3, for a neighbour: take its count from the old pair, and give it to a new one."""
    training.queue.pairs[find_pair(training, old_left, old_right)].count -= neighbour.count
    add_pair(training, left, right, neighbour)


@borrowing_kernel
def list_places(training, listed, product):
    """Step 4: list the places of the new pairs."""
    for index in range(len(listed)):
        place = np.int64(listed[index])
        before, after = neighbours(training, place, product)
        if before != NO_TOKEN:
            list_place(training.lists, training.before[before], place - training.tokens[before].length)
        if after != NO_TOKEN:
            list_place(training.lists, training.after[after], place)


@borrowing_kernel
def list_place(lists, neighbour, place):
    lists[neighbour.next] = place
    neighbour.next += 1


@borrowing_kernel
def add_pair(training, left, right, neighbour):
    """Add a pair with the count and the number of places of a neighbour; set that back, with its next place."""
    pair = training.sizes[0].pairs
    training.sizes[0].pairs += 1
    pairs = training.queue.pairs
    pairs[pair].left, pairs[pair].right, pairs[pair].count = left, right, neighbour.count
    neighbour.next = training.sizes[0].listed
    training.slices[pair].first, training.slices[pair].size = neighbour.next, neighbour.places
    training.sizes[0].listed += neighbour.places
    neighbour.count = neighbour.places = 0
    enter(training, pair)
    put(training.queue, pair)


@borrowing_kernel
def slot_of(training, left, right):
    """Return where in the table to begin looking for a pair."""
    key = np.uint64(left) << HALF_WORD | np.uint64(right)
    return np.int64(key * MIX >> HALF_WORD) & len(training.table) - 1


@borrowing_kernel
def find_pair(training, left, right):
    """Return the pair of two tokens, which must be in the table."""
    slot = slot_of(training, left, right)
    while True:
        pair = training.table[slot]
        if training.queue.pairs[pair].left == left and training.queue.pairs[pair].right == right:
            return pair
        slot = slot + 1 & len(training.table) - 1


@borrowing_kernel
def enter(training, pair):
    """Enter a pair that is not in the table."""
    slot = slot_of(training, training.queue.pairs[pair].left, training.queue.pairs[pair].right)
    while training.table[slot] != NO_PAIR:
        slot = slot + 1 & len(training.table) - 1
    training.table[slot] = pair


@borrowing_kernel
def enter_all_pairs(training):
    """Enter all pairs into an empty table."""
    for pair in range(training.sizes[0].pairs):
        enter(training, pair)
