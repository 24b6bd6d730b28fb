"""Byte-level BPE training in two hops: text files → counted pre-tokens → merges.

Counting is where the corpus goes through, block by block and, if it is large, through worker processes. Only
the distinct pre-tokens are kept, so that memory does not grow with the corpus. Learning the merges works on
those alone and touches, at each merge, only the pre-tokens that hold the merged pair.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
algorithm 1, on bytes as in GPT-2.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import final

from transformerlm.tokenizer.corpus import read_text
from transformerlm.tokenizer.pretokenize import (
    check_special_tokens,
    pretokenize,
    special_pattern,
    split_special,
)
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.utils.errors import DataError, TokenizerError
from transformerlm.utils.parallel import ordered_map, worker_count

COUNT_BLOCK_CHARS = 1 << 20
MIN_BYTES_PER_WORKER = 4 << 20  # less is counted faster than a process starts
MERGES_PER_REPORT = 100

Progress = Callable[[str, float], None]
"""Called with the stage, "count" or "merge", and the share of it that is done, 0 to 1."""
Pair = tuple[int, int]


def train_bpe(
    input_path: str | Path | Sequence[str | Path],
    vocab_size: int,
    special_tokens: list[str],
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Learn a byte-level BPE vocabulary from one or many UTF-8 text files (`.gz` and `.zst` too).

    Returns the vocabulary and the merges in the order in which they were made. The ids are the 256 single
    bytes (id = byte), then the products of the merges, then the special tokens; `vocab_size` counts all of
    them. The vocabulary is smaller if the text runs out of pairs. The result is the same for any number of
    workers.

    Args:
        input_path: the files; each is a text of its own.
        vocab_size: number of ids, at least 256 and the special tokens.
        special_tokens: texts that are cut out of the corpus, take part in no merge and are never split.
        num_workers: processes that count pre-tokens; by default one per processor. A small corpus is counted
            in this process.
        progress: see `Progress`.

    Raises:
        TokenizerError: `vocab_size` is too small, a special token is unfit, or a file is not UTF-8.
        DataError: a file cannot be read.
    """
    check_special_tokens(special_tokens)
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but the 256 bytes and the special tokens are "
            f"{256 + len(special_tokens)}; give at least that"
        )
    counts = count_pretokens(input_path, special_tokens, num_workers=num_workers, progress=progress)
    merges = learn_merges(counts, num_merges, progress=progress)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [left + right for left, right in merges]
    tokens += [special.encode("utf-8") for special in special_tokens]
    return dict(enumerate(tokens)), merges


def count_pretokens(
    input_path: str | Path | Sequence[str | Path],
    special_tokens: Sequence[str] = (),
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Counter[bytes]:
    """Count the pre-tokens of text files, special tokens left out. Arguments and errors as `train_bpe`."""
    check_special_tokens(special_tokens)
    if num_workers is not None and num_workers < 1:
        raise TokenizerError(f"num_workers is {num_workers}; give 1 or more")
    paths = [Path(path) for path in ([input_path] if isinstance(input_path, str | Path) else input_path)]
    if not paths:
        raise DataError("no text file is given; give at least one")
    total_bytes = sum(map(_file_size, paths))
    workers = min(worker_count(num_workers), total_bytes // MIN_BYTES_PER_WORKER)
    blocks = _corpus_blocks(paths, total_bytes, special_tokens, progress)
    if workers > 1:
        counts = _count_in_workers(blocks, special_tokens, workers)
    else:
        counts = _count_blocks(blocks, special_tokens)
    return Counter({piece.encode("utf-8"): count for piece, count in counts.items()})


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _corpus_blocks(
    paths: Sequence[Path], total_bytes: int, special_tokens: Sequence[str], progress: Progress | None
) -> Iterator[str]:
    """Yield the corpus in blocks that are pre-tokenized each by itself; no block spans two files."""
    bytes_before = 0

    def report(bytes_read: int) -> None:
        if progress:
            progress("count", min(1.0, (bytes_before + bytes_read) / max(1, total_bytes)))

    for path in paths:
        yield from safe_blocks(read_text(path, report), special_tokens, COUNT_BLOCK_CHARS)
        bytes_before += _file_size(path)


def _count_blocks(blocks: Iterable[str], special_tokens: Sequence[str]) -> Counter[str]:
    pattern = special_pattern(special_tokens)
    counts: Counter[str] = Counter()
    for block in blocks:
        for plain_text in split_special(block, pattern)[::2]:
            counts.update(pretokenize(plain_text))
    return counts


def _count_block(block: str, special_tokens: Sequence[str]) -> Counter[str]:
    return _count_blocks([block], special_tokens)


def _count_in_workers(blocks: Iterable[str], special_tokens: Sequence[str], workers: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    for block_counts in ordered_map(partial(_count_block, special_tokens=special_tokens), blocks, workers=workers):
        counts.update(block_counts)
    return counts


def learn_merges(
    counts: Mapping[bytes, int], num_merges: int, *, progress: Progress | None = None
) -> list[tuple[bytes, bytes]]:
    """Return up to `num_merges` merges of the most frequent pair; fewer if no pairs are left.

    Among equally frequent pairs the lexicographically greatest pair of byte strings is merged. The order of
    `counts` does not matter.

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
            progress("merge", len(merges) / num_merges)
    if progress:
        progress("merge", 1.0)
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
        self.words = [list(piece) for piece in counts]
        self.word_counts = list(counts.values())
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
