"""Byte-pair merging of one pre-token, as the definition has it, and without its quadratic cost for long ones.

Here a token goes by its number: 0 to 255 are the single bytes, 256 + k is the product of merge k. So the
smallest product among the adjacent pairs belongs to the merge that comes first; and since a merge uses only
bytes and products of earlier merges, a product has a larger number than its parts.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
section 3.2.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise

LONG = 64  # bytes; from about here on the heap is faster than the definition
NO_TOKEN = -1

MergeTable = dict[tuple[int, int], int]
"""From the numbers of two adjacent tokens to the number of their product."""


def merge_table(merges: Sequence[tuple[bytes, bytes]]) -> MergeTable:
    """Return the table of a list of merges, each of single bytes and products of earlier merges."""
    number_of = {bytes([byte]): byte for byte in range(256)}
    table: MergeTable = {}
    for product, (left, right) in enumerate(merges, start=256):
        table[number_of[left], number_of[right]] = product
        number_of[left + right] = product
    return table


def merge_bytes(piece: bytes, table: MergeTable) -> list[int]:
    """Return the token numbers of a pre-token."""
    tokens = list(piece)
    return merge_short(tokens, table) if len(tokens) <= LONG else merge_long(tokens, table)


def merge_short(tokens: list[int], table: MergeTable) -> list[int]:
    """Merge the pair of the earliest merge, the leftmost first, until no pair merges. The definition."""
    never = len(table) + 256
    while len(tokens) > 1:
        products = [table.get(pair, never) for pair in pairwise(tokens)]
        product = min(products)
        if product == never:
            break
        at = products.index(product)
        tokens[at : at + 2] = [product]
    return tokens


def merge_long(tokens: list[int], table: MergeTable) -> list[int]:
    """Do the same in O(n log n): the places of each product wait in a list, the products in a heap.

    A merge only makes pairs with larger products than its own, so that when a product is at the top of the
    heap, all its places are known. Places overlap only in a run x x x, and all of x is made in one sweep, so that
    the left one is listed first. The tokens stay where they are, linked in both directions.
    """
    following = list(range(1, len(tokens) + 1))
    preceding = list(range(-1, len(tokens)))
    tokens = [*tokens, NO_TOKEN]  # stands after the last token and, as tokens[-1], before the first
    places: dict[int, list[int]] = {}
    heap: list[int] = []

    def find(at: int) -> None:
        product = table.get((tokens[at], tokens[following[at]]))
        if product is None:
            return
        if product not in places:
            places[product] = []
            heapq.heappush(heap, product)
        places[product].append(at)

    for at in range(len(tokens) - 1):
        find(at)
    while heap:
        product = heapq.heappop(heap)
        for at in places.pop(product):
            after = following[at]
            if table.get((tokens[at], tokens[after])) != product:
                continue  # another merge has used one of the two
            tokens[at], tokens[after] = product, NO_TOKEN
            following[at] = following[after]
            preceding[following[at]] = at
            find(at)
            if preceding[at] >= 0:
                find(preceding[at])
    return [token for token in tokens if token != NO_TOKEN]
