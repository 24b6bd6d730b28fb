"""What the tasks of a build are told: everything that their results depend on, and nothing else that they need.

A task may run on a thread of the process that builds, or in another process, perhaps on another machine that sees the
same files. So a job can be pickled: what is shared by threads is made anew, or does without, on the other side.
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

_PLACE_BITS = 40
_BUCKET_BITS = 16
_BYTES_A_TOKEN = 3  # fewer than byte-level BPE gets on ordinary text: what is asked of the disk is enough


class StoppedError(Exception):
    """The build was given up while a task was at work."""


@dataclass
class Work:
    """What has been done of something so far."""

    num_bytes: int = 0
    """Of the sources, as stored."""
    num_documents: int = 0
    num_tokens: int = 0


@final
class Meter:
    """What the tasks of this process have done, told by them as they go; and whether they are to stop.

    In another process it is another one, which nobody reads.
    """

    def __init__(self) -> None:
        self.by_task: dict[int, Work] = {}
        self.stopped = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, ()

    def tell(self, task: int, work: Work) -> None:
        """Note what a task has done so far. Raises `StoppedError` if it is to do no more."""
        if self.stopped:
            raise StoppedError
        self.by_task[task] = work

    def total(self) -> Work:
        """Return what has been done by all."""
        works = list(self.by_task.values())
        return Work(
            sum(work.num_bytes for work in works),
            sum(work.num_documents for work in works),
            sum(work.num_tokens for work in works),
        )


@final
class SharedTokenizer:
    """A tokenizer that threads share, and that other processes read from a folder, each once."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, expected_bytes: int) -> None:
        """`expected_bytes` is the size of all the text."""
        self.tokenizer = tokenizer
        self._folder = folder
        self._expected_bytes = expected_bytes
        self._is_saved = False
        tokenizer.expect(expected_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._is_saved:  # only now, since threads need no file
            self.tokenizer.save(self._folder)
            self._is_saved = True
        return _load_once, (self._folder, self.tokenizer.sha256(), self._expected_bytes)


@lru_cache(maxsize=1)
def _load_once(folder: Path, _sha256: str, expected_bytes: int) -> SharedTokenizer:
    return SharedTokenizer(Tokenizer.load(folder), folder, expected_bytes)


@dataclass(frozen=True)
class Order:
    """Where documents go: a key (uint64) each, ascending in the output."""

    shuffle: bool
    seed: int
    num_parts: int

    @property
    def bucket_shift(self) -> int:
        """Keys fall into buckets by the bits above these: by a hash, or by the part."""
        return 64 - _BUCKET_BITS if self.shuffle else _PLACE_BITS

    @property
    def num_buckets(self) -> int:
        return 1 << _BUCKET_BITS if self.shuffle else self.num_parts

    def keys(self, hashes: Index, part: int, first: int) -> Index:
        """Return the keys of documents with these hashes, which are numbers `first`, … of a part.

        A shuffled document's key depends on seed and text alone: no other document and no file moves it.
        """
        if self.shuffle:
            return mixed(hashes ^ mixed(np.array([self.seed], np.uint64)))
        return np.arange(first, first + len(hashes), dtype=np.uint64) + np.uint64(part << _PLACE_BITS)


@dataclass(frozen=True)
class Job:
    """What every task is told."""

    folder: Path
    """Where the spools lie, and which all tasks see."""
    tokenizer: SharedTokenizer
    end_of_text_id: int
    dtype: str
    """Of the ids."""
    reading: Reading
    order: Order
    first_valid_part: int
    """Parts from this on are of validation sources."""
    valid_fraction: float
    """Of the documents of the other parts, the share that is to go to validation."""
    valid_below: int
    """Of the documents of the other parts, those with a smaller hash than this go to validation."""
    threads: int
    """That work on a task together: more than one if there are few tasks."""
    meter: Meter

    def spool(self, part: int) -> Path:
        """Return where a part's spool lies."""
        return self.folder / f"part-{part:06d}"

    @property
    def width(self) -> int:
        """Of an id in bytes."""
        return np.dtype(self.dtype).itemsize


def expected_id_bytes(text_bytes: int, vocab_size: int) -> int:
    """Return about how large the ids of a text are."""
    return text_bytes // _BYTES_A_TOKEN * np.dtype(id_dtype(vocab_size)).itemsize
