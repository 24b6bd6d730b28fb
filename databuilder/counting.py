"""Pre-tokens of sources, counted part by part wherever tasks run, and added up: what a tokenizer is trained on.

    sources ──cut_into_parts──▶ parts ──count_part──▶ counts ──add──▶ all counts ──train_bpe_on_counts──▶ vocabulary

The sum is the same for any parts, workers and order, so the tokenizer is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from databuilder.build_directory import Say
from databuilder.engine import task_slots
from databuilder.job import Meter, Work
from databuilder.pieces import Batch, End, Piece, Reading, TextCounts
from databuilder.readers.dispatch import read_part
from databuilder.sources import SourceFile, say_empty
from databuilder.splits import PART_BYTES, Part, cut_into_parts
from transformerlm.tokenizer import bpe as bpe_reference
from transformerlm.tokenizer.blocks import BLOCK_BYTES, Block
from transformerlm.tokenizer.bpe_trainer import count_compiled, counting_is_compiled
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.utils.errors import require_list
from transformerlm.utils.parallel import finished_tasks

if TYPE_CHECKING:
    from transformerlm.tokenizer.kernels.counter import Table, Words

SMALLEST_PART = 4 << 20
"""Handing less to a worker takes longer than to count it."""


@dataclass(frozen=True)
class PartCounts:
    """What was counted of a part; can be pickled."""

    pretokens: "Counter[bytes] | Table"
    """In the layer that counted them."""
    text: TextCounts


@dataclass(frozen=True)
class Counting:
    """What a task is told."""

    reading: Reading
    special_tokens: tuple[str, ...]
    compiled: bool
    """Whether the compiled layer counts. It is the same for all parts, so that their counts can be added."""
    threads: int
    """That work on a part together."""
    meter: Meter


def count_sources(
    files: Sequence[SourceFile],
    reading: Reading,
    special_tokens: Sequence[str],
    *,
    executor: Executor,
    workers: int = 0,
    progress: Callable[[float], None] | None = None,
    say: Say | None = None,
) -> "tuple[Counter[bytes] | Words, TextCounts]":
    """Count the distinct pre-tokens of the documents of `files`, special tokens left out, by tasks of `executor`.

    `workers` is how many tasks it works on at a time (0: as many as it has); `progress` is told the share that is done,
    `say` which files hold no document. Raises the errors of `read_part`.
    """
    require_list("special_tokens", special_tokens)
    slots = task_slots(executor, workers)
    num_bytes = sum(file.num_bytes or PART_BYTES for file in files)
    parts = cut_into_parts(files, part_bytes=max(SMALLEST_PART, min(PART_BYTES, num_bytes // (4 * slots))))
    meter = Meter()
    threads = max(1, slots // max(1, len(parts)))
    counting = Counting(reading, tuple(special_tokens), counting_is_compiled(num_bytes), threads, meter)

    def report() -> None:
        if progress is not None:
            progress(min(1.0, meter.total().num_bytes / max(1, num_bytes)))

    total = _Total(counting.compiled)
    text = TextCounts()
    num_documents = Counter[str]()
    try:
        for part, counts in finished_tasks(
            executor, partial(_count_numbered, counting), parts, slots=slots, on_tick=report
        ):
            meter.tell(part.number, Work(part.num_bytes))
            total.add(counts)
            text.add(counts.text)
            num_documents[part.source.name] += counts.text.documents_used
    finally:
        meter.stopped = True  # after an error or Ctrl-C, for the tasks that are still at work
    if say is not None:
        say_empty(files, num_documents, say)
    return total.pretokens(), text


def count_part(part: Part, counting: Counting) -> PartCounts:
    """Count the pre-tokens of the documents that begin in `part`. Raises the errors of `read_part`."""
    text = TextCounts()
    batches = read_part(part, counting.reading, text, lambda done: counting.meter.tell(part.number, Work(done)))
    blocks = document_blocks(batches, counting.special_tokens, hold=counting.reading.errors == "skip")
    if counting.compiled:
        return PartCounts(count_compiled(blocks, counting.special_tokens, counting.threads).table(), text)
    documents = (document for block in blocks for document in block.texts())
    return PartCounts(bpe_reference.count_pretokens(documents, counting.special_tokens), text)


def document_blocks(batches: Iterable[Batch], special_tokens: Sequence[str], *, hold: bool = False) -> Iterator[Block]:
    """Return documents in blocks to be counted, long ones cut at safe places.

    With `hold`, a long document is held in memory until its end tells whether it is to be used.
    """
    pieces = chain.from_iterable(batches)
    texts: list[bytes] = []
    size = 0
    for piece in pieces:
        if piece.end is End.KEPT:
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
                document = iter(held if held[-1].end is End.KEPT else [])
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


def _count_numbered(counting: Counting, part: Part) -> tuple[Part, PartCounts]:
    return part, count_part(part, counting)


class _Total:
    """The sum of the counts of parts, all of the same layer."""

    def __init__(self, compiled: bool) -> None:
        if compiled:
            from transformerlm.tokenizer.kernels.counter import PieceCounter

            self._sum: Counter[bytes] | PieceCounter = PieceCounter()
        else:
            self._sum = Counter()

    def add(self, counts: PartCounts) -> None:
        if isinstance(self._sum, Counter):
            assert isinstance(counts.pretokens, Counter), "parts are counted in one layer"
            self._sum.update(counts.pretokens)
        else:
            assert not isinstance(counts.pretokens, Counter), "parts are counted in one layer"
            self._sum.add(counts.pretokens)

    def pretokens(self) -> "Counter[bytes] | Words":
        return self._sum if isinstance(self._sum, Counter) else self._sum.words()
