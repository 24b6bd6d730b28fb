"""The picklable inputs that all tasks of a build share.

A task runs on a thread of the building process, or in another process, perhaps on another machine that sees the same
files. Threads share the tokenizer and the meter; another process loads its own tokenizer and has a meter nobody reads.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np

from databuilder.pieces import Reading
from databuilder.sorted_runs import Index
from databuilder.text_hash import mixed
from transformerlm.token_files.index import id_dtype
from transformerlm.tokenizer import Tokenizer

_POSITION_BITS = 40
_BIN_BITS = 16
_BYTES_PER_TOKEN = 3  # byte-level BPE has more on ordinary text, so estimates of disk space are large enough


class StoppedError(Exception):
    """The build was stopped while a task was running."""


@dataclass
class Work:
    """Work done so far."""

    num_bytes: int = 0
    """Of the sources, as stored."""
    num_documents: int = 0
    num_tokens: int = 0


@final
class Meter:
    """The progress of the tasks of this process, reported by them, and a flag that asks them to stop."""

    def __init__(self) -> None:
        self.by_task: dict[int, Work] = {}
        self.stopped = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, ()

    def update(self, task: int, work: Work) -> None:
        """Set the work that a task has done so far. Raises `StoppedError` if the build was stopped."""
        if self.stopped:
            raise StoppedError
        self.by_task[task] = work

    def total(self) -> Work:
        """Return the work done by all tasks together."""
        works = list(self.by_task.values())
        return Work(
            sum(work.num_bytes for work in works),
            sum(work.num_documents for work in works),
            sum(work.num_tokens for work in works),
        )


@final
class SharedTokenizer:
    """A tokenizer that threads share; each other process loads it once from a folder."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, expected_bytes: int) -> None:
        """`expected_bytes` is the size of the whole text."""
        self.tokenizer = tokenizer
        self._folder = folder
        self._expected_bytes = expected_bytes
        self._is_saved = False
        tokenizer.expect(expected_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._is_saved:  # only when pickled: threads do not need the files
            self.tokenizer.save(self._folder)
            self._is_saved = True
        return _load_once, (self._folder, self.tokenizer.sha256(), self._expected_bytes)


@lru_cache(maxsize=1)
def _load_once(folder: Path, _sha256: str, expected_bytes: int) -> SharedTokenizer:
    return SharedTokenizer(Tokenizer.load(folder), folder, expected_bytes)


@dataclass(frozen=True)
class SortOrder:
    """The sort key (uint64) of each document; documents are in ascending order in the output."""

    shuffle: bool
    seed: int
    num_splits: int

    @property
    def bin_shift(self) -> int:
        """Shift that maps a key to its histogram bin: the top bits of a hash, or the number of the input split."""
        return 64 - _BIN_BITS if self.shuffle else _POSITION_BITS

    @property
    def num_bins(self) -> int:
        return 1 << _BIN_BITS if self.shuffle else self.num_splits

    def keys(self, hashes: Index, split: int, first: int) -> Index:
        """Return the keys of consecutive documents of a split, the first of them being its document number `first`.

        A shuffled document's key depends only on the seed and its text, not on other documents or files.
        """
        if self.shuffle:
            return mixed(hashes ^ mixed(np.array([self.seed], np.uint64)))
        return np.arange(first, first + len(hashes), dtype=np.uint64) + np.uint64(split << _POSITION_BITS)


@dataclass(frozen=True)
class Job:
    """The inputs that all tasks share."""

    folder: Path
    """The folder of the run files; all workers must see it."""
    tokenizer: SharedTokenizer
    end_of_text_id: int
    dtype: str
    """Type of the ids."""
    reading: Reading
    order: SortOrder
    first_valid_split: int
    """Splits from this number on belong to validation sources."""
    valid_fraction: float
    """Share of the other splits' documents to use for validation."""
    valid_below: int
    """Documents of the other splits go to validation if their hash is below this."""
    threads: int
    """Per task; more than one if there are few tasks."""
    meter: Meter

    def run_file(self, split: int) -> Path:
        """Return the path of a split's file of sorted runs."""
        return self.folder / f"part-{split:06d}"

    @property
    def width(self) -> int:
        """Bytes per id."""
        return np.dtype(self.dtype).itemsize


def expected_id_bytes(text_bytes: int, vocab_size: int) -> int:
    """Return the approximate size of a text's ids."""
    return text_bytes // _BYTES_PER_TOKEN * np.dtype(id_dtype(vocab_size)).itemsize
