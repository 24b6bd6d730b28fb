"""Byte-pair merging of one pre-token: the definition, and a version without its quadratic cost for long pre-tokens.

Merges are given in order of rank, the first being rank 0. Of all adjacent pairs the one with the lowest rank is merged
first, and of several with the same rank the leftmost. Nothing is assumed about the order in which tokens are made: a
merge may use a token that only a later merge makes, and several merges may make the same token.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
section 3.2.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

LONG = 64  # tokens; from about here on the heap is faster than the definition
NO_TOKEN = -1
NEVER = (1 << 62, NO_TOKEN)  # a rank that no merge has

MergeTable = dict[tuple[int, int], tuple[int, int]]
"""From the ids of two adjacent tokens to the rank of their merge and the id of the merged token."""


def merge_table(merges: Iterable[tuple[bytes, bytes]], id_of: Mapping[bytes, int]) -> MergeTable:
    """Return the table of `merges`, the lowest rank first; a pair that is listed twice has its last rank."""
    return {(id_of[left], id_of[right]): (rank, id_of[left + right]) for rank, (left, right) in enumerate(merges)}


def merge_ids(ids: list[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Return the ids of a pre-token whose single bytes have `ids`, which may be changed.

    Merging stops early when only `at_least` tokens are left.
    """
    return merge_short(ids, table, at_least) if len(ids) <= LONG else merge_long(ids, table, at_least)


def merge_short(ids: list[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Merge the pair with the lowest rank, the leftmost first, until no pair merges. The definition."""
    while len(ids) > at_least:
        found = [table.get(pair, NEVER) for pair in pairwise(ids)]
        best = min(found)
        if best == NEVER:
            break
        at = found.index(best)
        ids[at : at + 2] = [best[1]]
    return ids


def merge_long(ids: Sequence[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Do the same in O(n log n): ranks and places of the pairs wait in a heap.

    The tokens stay where they are, linked in both directions; a merged token takes the place of its left part.
    """
    following = list(range(1, len(ids) + 1))
    preceding = list(range(-1, len(ids)))
    tokens = [*ids, NO_TOKEN]  # stands after the last token and, as tokens[-1], before the first

    def rank_and_token(at: int) -> tuple[int, int]:
        return table.get((tokens[at], tokens[following[at]]), NEVER) if tokens[at] != NO_TOKEN else NEVER

    heap = [(rank_and_token(at)[0], at) for at in range(len(ids))]
    heapq.heapify(heap)
    left = len(ids)
    while heap and left > at_least:
        rank, at = heapq.heappop(heap)
        found, token = rank_and_token(at)
        if found != rank or found == NEVER[0]:
            continue  # another merge has used one of the two, or they do not merge
        after = following[at]
        tokens[at], tokens[after] = token, NO_TOKEN
        left -= 1
        following[at] = following[after]
        preceding[following[at]] = at
        for place in (preceding[at], at):
            new_rank, _ = rank_and_token(place)
            if new_rank != NEVER[0]:
                heapq.heappush(heap, (new_rank, place))
    return [token for token in tokens if token != NO_TOKEN]
