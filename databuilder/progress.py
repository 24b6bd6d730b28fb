"""How far a build has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from databuilder.job import Meter, Work
from databuilder.splits import Part


@dataclass(frozen=True)
class Progress:
    """What is done of a phase, and how much that is of all, 0 to 1."""

    phase: Literal["encode", "write"]
    share: float
    num_bytes: int
    """Of the sources, as stored."""
    num_documents: int
    num_tokens: int


OnProgress = Callable[[Progress], None]
"""Called a few times a second."""


@final
class Report:
    """Joins what tasks tell and what is known of finished ones."""

    def __init__(self, parts: Sequence[Part], on_progress: OnProgress | None) -> None:
        self.meter = Meter()
        self._parts = parts
        self._on_progress = on_progress
        self._num_bytes = sum(part.num_bytes for part in parts)
        self._finished: set[int] = set()
        self._encoded = Work()
        self._tokens_to_write: int | None = None

    def finish_part(self, number: int, work: Work) -> None:
        """Note that a part is finished, whoever did it."""
        self._finished.add(number)
        self.meter.by_task[number] = work

    def begin_writing(self, num_tokens: int) -> None:
        """Note that now so many ids are to be written."""
        self._encoded = self.meter.total()
        self._tokens_to_write = num_tokens
        self.meter = Meter()

    def tick(self) -> None:
        """Tell how far it has come."""
        if self._on_progress is None:
            return
        work = self.meter.total()
        if self._tokens_to_write is None:
            of_all = self._num_bytes
            share = work.num_bytes / of_all if of_all else len(self._finished) / max(1, len(self._parts))
            progress = Progress("encode", min(1.0, share), work.num_bytes, work.num_documents, work.num_tokens)
        else:
            share, done = work.num_tokens / max(1, self._tokens_to_write), self._encoded
            progress = Progress("write", min(1.0, share), done.num_bytes, done.num_documents, work.num_tokens)
        self._on_progress(progress)
