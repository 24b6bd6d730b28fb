"""Byte-pair encoding in plain Python: learn merges, then encode and decode with them.

The example of the paper: a corpus with the words `low` (5 times), `lower` (2), `newest` (6) and `widest` (3).

    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}

**Training** starts from single bytes. The most frequent adjacent pair is `s t`, which occurs 6 + 3 = 9 times (as
often as `e s`; ties go to the lexicographically greatest pair). It becomes a new token, and the pairs are counted anew:

    l o w   l o w e r   n e w e s t   w i d e s t      merge s t    (9 times)  → st,  id 256
    l o w   l o w e r   n e w e st    w i d e st       merge e st   (9 times)  → est, id 257
    l o w   l o w e r   n e w est     w i d est        merge o w    (7 times)  → ow,  id 258
    l ow    l ow e r    n e w est     w i d est        merge l ow   (7 times)  → low, id 259

**Encoding** applies the merges in the order in which they were learned, their *rank*. A word that training never saw:

    l o w e s t  →  l o w e st  →  l o w est  →  l ow est  →  low est  =  [259, 257]

**Decoding** concatenates the bytes of the ids.

Text is first split into pre-tokens (see `pretokenize`), and only pairs inside a pre-token merge. The compiled version
of everything here is `transformerlm.tokenizer.kernels`; it gives the same results, and large inputs use it.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), section 3.2
and algorithm 1, on bytes as in GPT-2.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import final

from transformerlm.tokenizer.pretokenize import pretokenize, special_pattern, split_special
from transformerlm.tokenizer.utf8 import to_bytes, to_text
from transformerlm.tokenizer.validation import TokenIds, unknown_id

MERGES_PER_REPORT = 100
LONG = 64  # tokens; above about this length the heap is faster than the definition

Merge = tuple[bytes, bytes]
Pair = tuple[int, int]


# --- Training ---------------------------------------------------------------------------------------------------------


def count_pretokens(texts: Iterable[bytes], special_tokens: Sequence[str] = ()) -> Counter[bytes]:
    """Count the pre-tokens of `texts`, without the special tokens.

    A byte that is not valid UTF-8 counts as a character that is not a letter, a number or white space.
    """
    pattern = special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    for text in texts:
        for plain_text in split_special(to_text(text), pattern)[::2]:
            counts.update(pretokenize(plain_text))
    return Counter({to_bytes(pretoken): count for pretoken, count in counts.items()})


def learn_merges_naively(counts: Mapping[bytes, int], num_merges: int) -> list[Merge]:
    """Return up to `num_merges` merges, by the definition: count all pairs, merge the most frequent one, repeat.

    Among equally frequent pairs the lexicographically greatest pair of byte strings is merged.
    """
    words = [([bytes([byte]) for byte in pretoken], count) for pretoken, count in counts.items() if count]
    merges: list[Merge] = []
    while len(merges) < num_merges:
        pair_counts: Counter[Merge] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pair_counts[pair] += count
        if not pair_counts:
            break
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merges.append(best)
        words = [(_replace_pair(word, best), count) for word, count in words]
    return merges


def _replace_pair(word: list[bytes], pair: Merge) -> list[bytes]:
    merged = list(word)
    for at in range(len(word)):  # past the end of `merged`, slices are too short to equal the pair
        if tuple(merged[at : at + 2]) == pair:
            merged[at : at + 2] = [pair[0] + pair[1]]
    return merged


def learn_merges(
    counts: Mapping[bytes, int], num_merges: int, progress: Callable[[float], None] | None = None
) -> list[Merge]:
    """Return the merges of `learn_merges_naively`, updating only the pre-tokens that contain the merged pair.

    `progress` is called with the fraction that is done.

    The count of a pair only falls after the merge that creates the pair. So a heap entry may overstate a count but
    never understates it: the top entry is the best pair if its count is still correct, and otherwise is pushed back
    with the correct one. No two merges make the same bytes: unless a token crosses their ends, how earlier merges
    divide these bytes does not depend on the bytes around them.
    """
    words = _Words(counts)
    tokens = [bytes([byte]) for byte in range(256)]
    descending = [_descending(token) for token in tokens]

    def entry(pair: Pair) -> tuple[int, str, str, Pair]:
        return -words.pair_counts[pair], descending[pair[0]], descending[pair[1]], pair

    heap = [entry(pair) for pair in words.pair_counts]
    heapq.heapify(heap)
    merges: list[Merge] = []
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
        for new_pair in words.merge(pair, merged_id=len(tokens) - 1):
            heapq.heappush(heap, entry(new_pair))
        if progress and len(merges) % MERGES_PER_REPORT == 0:
            progress(len(merges) / num_merges)
    return merges


def _descending(token: bytes) -> str:
    """Return a key that sorts tokens in descending order: the bytes inverted, and an end above all of them."""
    return "".join(chr(255 - byte) for byte in token) + chr(256)


@final
class _Words:
    """The distinct pre-tokens as lists of token ids, and for each adjacent pair its count and the words it occurs in.

    `words_with` may still list a word that has lost the pair, but lists every word that contains it.
    """

    def __init__(self, counts: Mapping[bytes, int]) -> None:
        present = {pretoken: count for pretoken, count in counts.items() if count}
        self.words = [list(pretoken) for pretoken in present]
        self.word_counts = list(present.values())
        self.pair_counts: defaultdict[Pair, int] = defaultdict(int)
        self.words_with: defaultdict[Pair, list[int]] = defaultdict(list)
        for index, word in enumerate(self.words):
            for pair in pairwise(word):
                self._add(pair, index, self.word_counts[index])

    def merge(self, pair: Pair, merged_id: int) -> list[Pair]:
        """Replace `pair` by `merged_id` in all words and return the pairs that this creates."""
        touched: set[Pair] = set()
        for index in self.words_with.pop(pair):
            self._merge_word(index, pair, merged_id, touched)
        del self.pair_counts[pair]
        touched.discard(pair)
        for other in touched:
            if not self.pair_counts[other]:
                del self.pair_counts[other], self.words_with[other]
        return [other for other in touched if merged_id in other and other in self.pair_counts]

    def _merge_word(self, index: int, pair: Pair, merged_id: int, touched: set[Pair]) -> None:
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
                neighbours.append(((merged[-1], left), (merged[-1], merged_id)))
            if at + 2 <= last:
                neighbours.append(((right, word[at + 2]), (merged_id, word[at + 2])))
            for old, new in neighbours:
                self.pair_counts[old] -= count
                self._add(new, index, count)
                touched.update((old, new))
            merged.append(merged_id)
            at += 2
        self.words[index] = merged

    def _add(self, pair: Pair, index: int, count: int) -> None:
        self.pair_counts[pair] += count
        words = self.words_with[pair]
        if not words or words[-1] != index:
            words.append(index)


# --- Merging a pre-token ----------------------------------------------------------------------------------------------
#
# Lists of merges from other projects may use a token before the merge that makes it, and several of their merges may
# make the same token.

NO_TOKEN = -1
NEVER = (1 << 62, NO_TOKEN)  # a rank that no merge has

MergeTable = dict[Pair, tuple[int, int]]
"""From the ids of two adjacent tokens to the rank of their merge and the id of the merged token."""


def merge_table(merges: Iterable[Merge], id_of: Mapping[bytes, int]) -> MergeTable:
    """Return the table of `merges`, the lowest rank first; a pair that is listed twice has its last rank."""
    return {(id_of[left], id_of[right]): (rank, id_of[left + right]) for rank, (left, right) in enumerate(merges)}


def merge_ids(ids: list[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Return the merged ids of a pre-token, given the ids of its single bytes; `ids` may be changed.

    Merging stops early when only `at_least` tokens are left.
    """
    return merge_short(ids, table, at_least) if len(ids) <= LONG else merge_long(ids, table, at_least)


def merge_short(ids: list[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Merge the pair with the lowest rank, the leftmost first, until no pair merges. This is the definition."""
    while len(ids) > at_least:
        candidates = [table.get(pair, NEVER) for pair in pairwise(ids)]
        best = min(candidates)
        if best == NEVER:
            break
        at = candidates.index(best)
        ids[at : at + 2] = [best[1]]
    return ids


def merge_long(ids: Sequence[int], table: MergeTable, at_least: int = 1) -> list[int]:
    """Do the same in O(n log n), with a heap of the pairs' ranks and positions.

    The tokens keep their positions and form a doubly linked list; a merged token takes the position of its left part.
    """
    following = list(range(1, len(ids) + 1))
    preceding = list(range(-1, len(ids)))
    tokens = [*ids, NO_TOKEN]  # a sentinel after the last token and, as tokens[-1], before the first

    def rank_and_token(at: int) -> tuple[int, int]:
        return table.get((tokens[at], tokens[following[at]]), NEVER) if tokens[at] != NO_TOKEN else NEVER

    heap = [(rank_and_token(at)[0], at) for at in range(len(ids))]
    heapq.heapify(heap)
    left = len(ids)
    while heap and left > at_least:
        rank, at = heapq.heappop(heap)
        current_rank, token = rank_and_token(at)
        if current_rank != rank or current_rank == NEVER[0]:
            continue  # another merge has used one of the two tokens, or they do not merge
        after = following[at]
        tokens[at], tokens[after] = token, NO_TOKEN
        left -= 1
        following[at] = following[after]
        preceding[following[at]] = at
        for position in (preceding[at], at):
            new_rank, _ = rank_and_token(position)
            if new_rank != NEVER[0]:
                heapq.heappush(heap, (new_rank, position))
    return [token for token in tokens if token != NO_TOKEN]


# --- Encoding and decoding --------------------------------------------------------------------------------------------


def encode_pretoken(pretoken: str, ids: TokenIds, table: MergeTable) -> list[int]:
    """Return the ids of a pre-token: its bytes' ids, merged.

    A surrogate U+DC80 to U+DCFF stands for a byte that is not valid UTF-8, as in Python's "surrogateescape".
    """
    return merge_ids(ids.of_bytes(to_bytes(pretoken)), table)


def decode(ids: Iterable[int], vocab: Mapping[int, bytes]) -> bytes:
    """Return the bytes of `ids`; raise `TokenizerError` for an id that is not in the vocabulary."""
    try:
        return b"".join(map(vocab.__getitem__, ids))
    except KeyError as error:
        raise unknown_id(error.args[0], max(vocab) + 1) from None
