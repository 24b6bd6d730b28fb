"""Counts of the pre-tokens of sources, the input of tokenizer training: one task per input split, then the sum.

    sources ──cut_into_splits──▶ splits ──count_split──▶ counts ──add──▶ all counts ──train_bpe_on_counts──▶ vocabulary

The sum does not depend on the splits, workers or order, and so neither does the tokenizer.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from databuilder.build_directory import Log
from databuilder.engine import task_slots
from databuilder.job import Meter, Work
from databuilder.pieces import Batch, End, Piece, Reading, TextCounts
from databuilder.readers.dispatch import read_split
from databuilder.source_file import InputSplit, SourceFile
from databuilder.sources import log_empty_sources
from databuilder.splits import SPLIT_BYTES, cut_into_splits
from transformerlm.tokenizer import bpe as bpe_reference
from transformerlm.tokenizer.blocks import BLOCK_BYTES, Block
from transformerlm.tokenizer.bpe_trainer import count_compiled, counting_is_compiled
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.utils.errors import require_list
from transformerlm.utils.parallel import finished_tasks

if TYPE_CHECKING:
    from transformerlm.tokenizer.kernels.counter import Table, Words

MIN_SPLIT_BYTES = 4 << 20
"""Below this size, handing a split to a worker takes longer than counting it."""


@dataclass(frozen=True)
class SplitCounts:
    """The counts of a split; can be pickled."""

    pretokens: "Counter[bytes] | Table"
    """In the representation of the backend that counted them."""
    text: TextCounts


@dataclass(frozen=True)
class Counting:
    """The inputs that all counting tasks share."""

    reading: Reading
    special_tokens: tuple[str, ...]
    compiled: bool
    """Whether the compiled backend counts: the same for all splits, so that their counts can be added."""
    threads: int
    """Per split."""
    meter: Meter


def count_sources(
    files: Sequence[SourceFile],
    reading: Reading,
    special_tokens: Sequence[str],
    *,
    executor: Executor,
    workers: int = 0,
    progress: Callable[[float], None] | None = None,
    log: Log | None = None,
) -> "tuple[Counter[bytes] | Words, TextCounts]":
    """Count the distinct pre-tokens of the documents of `files`, special tokens left out, by tasks of `executor`.

    At most `workers` tasks run at a time (0: one per worker of the executor). `progress` is called with the share done,
    from 0 to 1, and `log` with a line that names files without any document. Raises the errors of `read_split`.
    """
    require_list("special_tokens", special_tokens)
    slots = task_slots(executor, workers)
    num_bytes = sum(file.num_bytes or SPLIT_BYTES for file in files)
    splits = cut_into_splits(files, split_bytes=max(MIN_SPLIT_BYTES, min(SPLIT_BYTES, num_bytes // (4 * slots))))
    meter = Meter()
    threads = max(1, slots // max(1, len(splits)))
    counting = Counting(reading, tuple(special_tokens), counting_is_compiled(num_bytes), threads, meter)

    def report() -> None:
        if progress is not None:
            progress(min(1.0, meter.total().num_bytes / max(1, num_bytes)))

    total = _Total(counting.compiled)
    text = TextCounts()
    num_documents = Counter[str]()
    try:
        for split, counts in finished_tasks(
            executor, partial(_count_numbered, counting), splits, slots=slots, on_tick=report
        ):
            meter.update(split.number, Work(split.num_bytes))
            total.add(counts)
            text.add(counts.text)
            num_documents[split.source.name] += counts.text.documents_used
    finally:
        meter.stopped = True  # after an error or Ctrl-C, for tasks that are still running
    if log is not None:
        log_empty_sources(files, num_documents, log)
    return total.pretokens(), text


def count_split(split: InputSplit, counting: Counting) -> SplitCounts:
    """Count the pre-tokens of the documents that begin in `split`. Raises the errors of `read_split`."""
    text = TextCounts()
    batches = read_split(split, counting.reading, text, lambda done: counting.meter.update(split.number, Work(done)))
    blocks = document_blocks(batches, counting.special_tokens, hold=counting.reading.errors == "skip")
    if counting.compiled:
        return SplitCounts(count_compiled(blocks, counting.special_tokens, counting.threads).table(), text)
    documents = (document for block in blocks for document in block.texts())
    return SplitCounts(bpe_reference.count_pretokens(documents, counting.special_tokens), text)


def document_blocks(batches: Iterable[Batch], special_tokens: Sequence[str], *, hold: bool = False) -> Iterator[Block]:
    """Yield documents in blocks for counting, long ones cut between pre-tokens.

    With `hold`, a long document is kept in memory until its last piece says whether to use it.
    """
    pieces = chain.from_iterable(batches)
    texts: list[bytes] = []
    size = 0
    for piece in pieces:
        if piece.end is End.FINAL:
            texts.append(piece.text)
            size += len(piece.text)
            if size < BLOCK_BYTES:
                continue
        if texts:
            yield Block(b"".join(texts), list(accumulate(map(len, texts))))
            texts, size = [], 0
        if piece.end is End.OPEN:
            document = _long_document(piece, pieces)
            if hold:
                held = list(document)
                document = iter(held if held[-1].end is End.FINAL else [])
            for text in safe_blocks((piece.text for piece in document), special_tokens, BLOCK_BYTES):
                yield Block(text, [len(text)])
    if texts:
        yield Block(b"".join(texts), list(accumulate(map(len, texts))))


def _long_document(piece: Piece, following: Iterator[Piece]) -> Iterator[Piece]:
    """Return all pieces of the document that begins with `piece`."""
    yield piece
    while piece.end is End.OPEN:
        piece = next(following)
        yield piece


def _count_numbered(counting: Counting, split: InputSplit) -> tuple[InputSplit, SplitCounts]:
    return split, count_split(split, counting)


class _Total:
    """The sum of the counts of splits, all from the same backend."""

    def __init__(self, compiled: bool) -> None:
        if compiled:
            from transformerlm.tokenizer.kernels.counter import PieceCounter

            self._sum: Counter[bytes] | PieceCounter = PieceCounter()
        else:
            self._sum = Counter()

    def add(self, counts: SplitCounts) -> None:
        if isinstance(self._sum, Counter):
            assert isinstance(counts.pretokens, Counter), "splits are counted in one layer"
            self._sum.update(counts.pretokens)
        else:
            assert not isinstance(counts.pretokens, Counter), "splits are counted in one layer"
            self._sum.add(counts.pretokens)

    def pretokens(self) -> "Counter[bytes] | Words":
        return self._sum if isinstance(self._sum, Counter) else self._sum.words()
