"""Byte-level BPE training in two steps: text → counted pre-tokens → merges.

    source ──corpus_blocks──▶ blocks ──count──▶ distinct pre-tokens, counted ──learn──▶ merges

The corpus is read in blocks, and only its distinct pre-tokens are kept, so memory does not grow with it. Each step has
two backends: pure Python (`bpe`) for small inputs, numba (`kernels`) for large ones. Both give the same results, for
any number of threads and however the corpus is divided into blocks.

Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
algorithm 1, on bytes as in GPT-2.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from transformerlm.tokenizer import backend, bpe
from transformerlm.tokenizer.blocks import Block, Source, corpus_blocks
from transformerlm.tokenizer.validation import check_special_tokens
from transformerlm.utils.errors import TokenizerError
from transformerlm.utils.parallel import ordered_thread_map, worker_count

if TYPE_CHECKING:
    from transformerlm.tokenizer.kernels.counter import PieceCounter, Words

Progress: TypeAlias = Callable[[str, float], None]
"""Called with the stage, "count" or "merge", and the fraction of it that is done, 0 to 1."""


def train_bpe(
    input_path: Source,
    vocab_size: int,
    special_tokens: list[str],
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Learn a byte-level BPE vocabulary from files, from anywhere that fsspec reaches, or from texts.

    Returns the vocabulary and the merges in the order in which they were made. The ids are the 256 single
    bytes (id = byte), then the merged tokens, then the special tokens; `vocab_size` counts all of them. The vocabulary
    is smaller if the text runs out of pairs. The result is the same for any number of workers, any order of the files
    or texts, and whether they are compressed or not.

    Args:
        input_path: one of

            - a path, or a URL of fsspec (`"s3://…"`, `"https://…"`, `"memory://…"`);
            - a list or tuple of them;
            - any other iterable of texts (`str` or `bytes`), a generator for instance. For the texts of a list, give
              `iter(texts)`: a list of strings is read as paths.

            No pre-token spans two files or texts. Files ending in `.gz`, `.zst` or `.xz` are decompressed. Text should
            be UTF-8; an invalid byte counts as a character that is not a letter, number or white space.
        vocab_size: number of ids, at least 256 plus the number of special tokens.
        special_tokens: texts that are cut out of the corpus, are not merged and are never split.
        num_workers: threads that count pre-tokens; by default one per processor. A small corpus is counted
            in this thread.
        progress: see `Progress`. For an iterable of texts, whose total is unknown, counting reports only its end.

    Raises:
        TokenizerError: `vocab_size` is too small, or a special token is invalid.
        DataError: a file cannot be read or is damaged, or an item is not text.
        MissingDependencyError: fsspec needs another package for a URL.
    """
    num_merges = _num_merges(vocab_size, special_tokens)
    counts = _count(input_path, special_tokens, num_workers, progress)
    return _vocabulary(learn_merges(counts, num_merges, progress=progress), special_tokens)


def train_bpe_on_counts(
    counts: "Mapping[bytes, int] | Words",
    vocab_size: int,
    special_tokens: list[str],
    *,
    progress: Progress | None = None,
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Like `train_bpe`, from counted pre-tokens without the special tokens."""
    num_merges = _num_merges(vocab_size, special_tokens)
    return _vocabulary(learn_merges(counts, num_merges, progress=progress), special_tokens)


def count_pretokens(
    input_path: Source,
    special_tokens: Sequence[str] = (),
    *,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Counter[bytes]:
    """Count the distinct pre-tokens of a corpus, without special tokens. Arguments and errors: see `train_bpe`."""
    check_special_tokens(special_tokens)
    counts = _count(input_path, special_tokens, num_workers, progress)
    return counts if isinstance(counts, Counter) else counts.counter()


def counting_is_compiled(num_bytes: int) -> bool:
    """Return whether the numba backend should count the pre-tokens of a text of this size."""
    return backend.compiled_pays(num_bytes, backend.CORPUS, "counter.count_texts")


def count_compiled(blocks: Iterable[Block], special_tokens: Sequence[str], threads: int) -> "PieceCounter":
    """Count the pre-tokens of `blocks` on several threads, each with its own counter, and add up the counters."""
    from transformerlm.tokenizer.kernels.counter import PieceCounter

    specials = [special.encode("utf-8") for special in special_tokens]
    free: list[PieceCounter] = []

    def count(block: Block) -> None:
        try:
            counter = free.pop()  # thread-safe, like `append`
        except IndexError:
            counter = PieceCounter(specials)
        counter.count(block.data, block.ends)
        free.append(counter)

    for _ in ordered_thread_map(count, blocks, threads=threads):
        pass
    total = free.pop() if free else PieceCounter(specials)
    while free:
        total.add(free.pop().table())
    return total


def learn_merges(
    counts: "Mapping[bytes, int] | Words", num_merges: int, *, progress: Progress | None = None
) -> list[tuple[bytes, bytes]]:
    """Return up to `num_merges` merges of the most frequent pair; fewer if no pairs are left.

    Among equally frequent pairs the lexicographically greatest pair of byte strings is merged. The order of
    `counts` does not matter.
    """

    def report(share: float) -> None:
        if progress:
            progress("merge", share)

    if isinstance(counts, Mapping) and not backend.compiled_pays(
        sum(map(len, counts)), backend.WORDS, "trainer_steps.make_merges"
    ):
        merges = bpe.learn_merges(counts, num_merges, report)
    else:
        from transformerlm.tokenizer.kernels.counter import Words
        from transformerlm.tokenizer.kernels.trainer import learn_merges_compiled

        words = Words.of(counts) if isinstance(counts, Mapping) else counts
        merges = learn_merges_compiled(*words, num_merges, report)
    report(1.0)
    return merges


def _num_merges(vocab_size: int, special_tokens: list[str]) -> int:
    """Return the number of merges that fit `vocab_size`; raise `TokenizerError` if it is too small."""
    check_special_tokens(special_tokens)
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but the 256 bytes and the special tokens are "
            f"{256 + len(special_tokens)}; give at least that"
        )
    return num_merges


def _vocabulary(
    merges: list[tuple[bytes, bytes]], special_tokens: list[str]
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [left + right for left, right in merges]
    tokens += [special.encode("utf-8") for special in special_tokens]
    return dict(enumerate(tokens)), merges


def _count(
    source: Source, special_tokens: Sequence[str], num_workers: int | None, progress: Progress | None
) -> "Counter[bytes] | Words":
    if num_workers is not None and num_workers < 1:
        raise TokenizerError(f"num_workers is {num_workers}; give 1 or more")

    def report(share: float) -> None:
        if progress:
            progress("count", share)

    blocks = corpus_blocks(source, special_tokens, report)
    first_blocks, compiled_pays = _first_blocks(blocks)
    blocks = chain(first_blocks, blocks)
    if compiled_pays:
        counts = count_compiled(blocks, special_tokens, worker_count(num_workers)).words()
    else:
        counts = bpe.count_pretokens((text for block in blocks for text in block.texts()), special_tokens)
    report(1.0)
    return counts


def _first_blocks(blocks: Iterator[Block]) -> tuple[list[Block], bool]:
    """Read blocks until the backend is decided; return them, and whether it is numba."""
    first_blocks, size = [], 0
    for block in blocks:
        first_blocks.append(block)
        size += len(block.data)
        if counting_is_compiled(size):
            return first_blocks, True
        if size >= backend.CORPUS.to_compile:  # numba's compiler is switched off
            break
    return first_blocks, False
