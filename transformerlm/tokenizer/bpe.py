"""Byte-level BPE training in plain Python, as the textbook has it: blocks of text → counted pre-tokens → merges.

    "low lower low"  ──count_pretokens──▶  {"low": 1, " lower": 1, " low": 1}  ──learn_merges──▶  (l, o), (lo, w), …

Learning works on the distinct pre-tokens alone, and touches at each merge only those that hold the merged pair.
Small corpora are trained with this. The compiled layer, `transformerlm.tokenizer.kernels`, gives the same results.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
algorithm 1, on bytes as in GPT-2.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import final

from transformerlm.tokenizer.pretokenize import pretokenize, special_pattern, split_special
from transformerlm.tokenizer.utf8 import to_bytes, to_text

MERGES_PER_REPORT = 100

Pair = tuple[int, int]


def count_pretokens(texts: Iterable[bytes], special_tokens: Sequence[str] = ()) -> Counter[bytes]:
    """Count the pre-tokens of `texts`, special tokens left out.

    A byte that is not UTF-8 counts as a character that is no letter, no number and no white space.
    """
    pattern = special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    for text in texts:
        for plain_text in split_special(to_text(text), pattern)[::2]:
            counts.update(pretokenize(plain_text))
    return Counter({to_bytes(piece): count for piece, count in counts.items()})


def learn_merges(
    counts: Mapping[bytes, int], num_merges: int, progress: Callable[[float], None] | None = None
) -> list[tuple[bytes, bytes]]:
    """Return up to `num_merges` merges of the most frequent pair; fewer if no pairs are left.

    Among equally frequent pairs the lexicographically greatest pair of byte strings is merged. The order of
    `counts` does not matter. `progress` is told the share that is done.

    The count of a pair only falls after the merge in which the pair first appears. So a heap entry may
    overstate a count, never understate it: the top is the best pair if its count still holds, and otherwise
    goes back with the true one. No two merges make the same bytes: what earlier merges made of those bytes
    does not depend on the bytes around them, unless a token reaches beyond them.
    """
    words = _Words(counts)
    tokens = [bytes([byte]) for byte in range(256)]
    descending = [_descending(token) for token in tokens]

    def entry(pair: Pair) -> tuple[int, str, str, Pair]:
        return -words.pair_counts[pair], descending[pair[0]], descending[pair[1]], pair

    heap = [entry(pair) for pair in words.pair_counts]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    while heap and len(merges) < num_merges:
        negative_count, _, _, pair = heapq.heappop(heap)
        count = words.pair_counts.get(pair, 0)
        if count == 0:
            continue
        if count != -negative_count:
            heapq.heappush(heap, entry(pair))
            continue
        left, right = tokens[pair[0]], tokens[pair[1]]
        merges.append((left, right))
        tokens.append(left + right)
        descending.append(_descending(left + right))
        for new_pair in words.merge(pair, product=len(tokens) - 1):
            heapq.heappush(heap, entry(new_pair))
        if progress and len(merges) % MERGES_PER_REPORT == 0:
            progress(len(merges) / num_merges)
    return merges


def _descending(token: bytes) -> str:
    """Return a key that orders tokens from the greatest down: bytes inverted, the end above all of them."""
    return "".join(chr(255 - byte) for byte in token) + chr(256)


@final
class _Words:
    """The distinct pre-tokens as lists of token ids, with the count and the places of every adjacent pair.

    `places` may still name a word from which a pair has vanished, but never lacks one that holds it.
    """

    def __init__(self, counts: Mapping[bytes, int]) -> None:
        present = {piece: count for piece, count in counts.items() if count}
        self.words = [list(piece) for piece in present]
        self.word_counts = list(present.values())
        self.pair_counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)
        for index, word in enumerate(self.words):
            for pair in pairwise(word):
                self._change(pair, index, self.word_counts[index])

    def merge(self, pair: Pair, product: int) -> list[Pair]:
        """Replace `pair` by `product` in all words and return the pairs that this brought about."""
        touched: set[Pair] = set()
        for index in self.places.pop(pair):
            self._merge_word(index, pair, product, touched)
        del self.pair_counts[pair]
        touched.discard(pair)
        for other in touched:
            if not self.pair_counts[other]:
                del self.pair_counts[other], self.places[other]
        return [other for other in touched if product in other and other in self.pair_counts]

    def _merge_word(self, index: int, pair: Pair, product: int, touched: set[Pair]) -> None:
        left, right = pair
        word, count = self.words[index], self.word_counts[index]
        merged: list[int] = []
        at, last = 0, len(word) - 1
        while at <= last:
            if at == last or word[at] != left or word[at + 1] != right:
                merged.append(word[at])
                at += 1
                continue
            neighbours = []
            if merged:
                neighbours.append(((merged[-1], left), (merged[-1], product)))
            if at + 2 <= last:
                neighbours.append(((right, word[at + 2]), (product, word[at + 2])))
            for old, new in neighbours:
                self.pair_counts[old] -= count
                self._change(new, index, count)
                touched.update((old, new))
            merged.append(product)
            at += 2
        self.words[index] = merged

    def _change(self, pair: Pair, index: int, count: int) -> None:
        self.pair_counts[pair] += count
        places = self.places[pair]
        if not places or places[-1] != index:
            places.append(index)
