"""The progress of a build."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from databuilder.job import Meter, Work
from databuilder.source_file import InputSplit


@dataclass(frozen=True)
class Progress:
    """The work done in a phase, and its share of all work in it, from 0 to 1."""

    phase: Literal["encode", "write"]
    share: float
    num_bytes: int
    """Bytes of the sources, as stored."""
    num_documents: int
    num_tokens: int


OnProgress = Callable[[Progress], None]
"""Called a few times per second."""


@final
class Report:
    """Combines the reports of running tasks with the work of finished ones."""

    def __init__(self, splits: Sequence[InputSplit], on_progress: OnProgress | None) -> None:
        self.meter = Meter()
        self._splits = splits
        self._on_progress = on_progress
        self._num_bytes = sum(split.num_bytes for split in splits)
        self._finished: set[int] = set()
        self._encoded = Work()
        self._tokens_to_write: int | None = None

    def finish_split(self, number: int, work: Work) -> None:
        """Note that a split is finished, in this process, another one, or an earlier build."""
        self._finished.add(number)
        self.meter.by_task[number] = work

    def begin_writing(self, num_tokens: int) -> None:
        """Begin the second phase, which writes `num_tokens` ids."""
        self._encoded = self.meter.total()
        self._tokens_to_write = num_tokens
        self.meter = Meter()

    def tick(self) -> None:
        """Report the progress."""
        if self._on_progress is None:
            return
        work = self.meter.total()
        if self._tokens_to_write is None:
            of_all = self._num_bytes
            share = work.num_bytes / of_all if of_all else len(self._finished) / max(1, len(self._splits))
            progress = Progress("encode", min(1.0, share), work.num_bytes, work.num_documents, work.num_tokens)
        else:
            share, done = work.num_tokens / max(1, self._tokens_to_write), self._encoded
            progress = Progress("write", min(1.0, share), done.num_bytes, done.num_documents, work.num_tokens)
        self._on_progress(progress)
