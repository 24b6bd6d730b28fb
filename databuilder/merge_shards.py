"""The second phase of a build: merge all sorted runs by range partition into shards of exact size.

    split 0  ──▒▒──────▓▓────        a shard is a range of keys: one contiguous slice of each run
    split 1  ───▒▒────▓▓─────
                │     │
    shard 0   ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒┊▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓   shard 1
                              └ a document may continue in the next shard

A histogram of the ids over the keys gives the range of each shard.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from databuilder.job import Job, Work
from databuilder.sorted_runs import IndexRows, Summary, read_index, read_vectors
from transformerlm.token_files.index import DOCUMENT_BYTES, Shard, documents_path, little_endian
from transformerlm.token_files.writer import write_shard_files
from transformerlm.utils.files import write_json, writing
from transformerlm.utils.parallel import ordered_thread_map

CHUNK_IDS = 1 << 21
"""Ids of a shard that are merged at a time, at least."""
MAX_CHUNK_IDS = 1 << 23
MIN_IDS_PER_SPLIT = 1 << 15
"""Ids per input split in a chunk, at least, to amortise the calls that read them."""

Numbers = npt.NDArray[np.int64]


class Document(NamedTuple):
    """The ids of a document, or of a part of one, in a run file."""

    split: int
    byte: int
    """Offset of the ids in the file."""
    num_ids: int


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: ids `begin` to `end` (exclusive) of one side's stream."""

    side: int
    number: int
    begin: int
    end: int
    path: Path
    """Where to write it."""
    name: str
    """Its final file name."""
    bins: tuple[int, int]
    """Range of histogram bins with documents of the shard; the end is exclusive."""
    bins_begin: int
    """Position in the stream where the first of these bins begins."""
    only: Document | None = None
    """The whole content of the stream, instead of the bins; see `one_document`."""


class WrittenShard(NamedTuple):
    """A shard that has been written."""

    side: int
    number: int
    shard: Shard
    max_token_id: int

    @property
    def task_number(self) -> int:
        """The shard's number among the shards of both sides."""
        return 2 * self.number + self.side


class _Rows(NamedTuple):
    """Documents in the order of the output."""

    splits: Numbers
    bytes_at: Numbers
    """Offset of the ids in the split's run file."""
    begins: Numbers
    """Positions in the stream where documents begin, and the end of the last; each document ends with end-of-text."""

    @classmethod
    def of(cls, documents: list[tuple[int, IndexRows]], begin: int) -> Self:
        """Return documents of several splits sorted by key; equal keys by split and position."""
        keys = np.concatenate([rows.keys for _, rows in documents])
        order = np.argsort(keys, kind="stable")
        splits = np.repeat([split for split, _ in documents], [len(rows.keys) for _, rows in documents])
        lengths = np.concatenate([rows.lengths for _, rows in documents])[order] + 1
        begins = np.concatenate([[0], np.cumsum(lengths)]) + begin
        return cls(splits[order], np.concatenate([rows.begins for _, rows in documents])[order], begins)

    def between(self, begin: int, end: int) -> Self:
        """Return the documents that overlap a range of positions in the stream."""
        first = int(np.searchsorted(self.begins, begin, side="right")) - 1
        last = int(np.searchsorted(self.begins[:-1], end))
        return type(self)(self.splits[first:last], self.bytes_at[first:last], self.begins[first : last + 1])


def key_histogram(job: Job, side: int) -> Numbers:
    """Return the number of ids, end-of-text included, whose document's key falls into each bin."""
    shift = np.uint64(job.order.bin_shift)
    total = np.zeros(job.order.num_bins, np.int64)
    for _, rows in _read_rows(job, side, 0, 1 << 64):
        bins = (rows.keys >> shift).astype(np.int64)
        firsts = np.flatnonzero(np.diff(bins, prepend=-1))
        total[bins[firsts]] += np.add.reduceat(rows.lengths + 1, firsts)
    return total


def cut_into_shards(
    histogram: Numbers, *, shard_tokens: int, side: int, folder: Path, output: Path, only: Document | None = None
) -> list[ShardTask]:
    """Return the shards of a stream, to be written to `folder`; `histogram` has the number of ids in each bin."""
    bin_ends = np.cumsum(histogram)
    num_ids = int(bin_ends[-1])
    tasks = []
    for number, begin in enumerate(range(0, num_ids, shard_tokens)):
        end = min(begin + shard_tokens, num_ids)
        first = int(np.searchsorted(bin_ends, begin, side="right"))
        task = ShardTask(
            side=side,
            number=number,
            begin=begin,
            end=end,
            path=folder / f"shard-{number:05d}",
            name=output.name if num_ids <= shard_tokens else f"{output.stem}.{number:05d}{output.suffix}",
            bins=(first, int(np.searchsorted(bin_ends, end)) + 1),
            bins_begin=int(bin_ends[first] - histogram[first]),
            only=only,
        )
        tasks.append(task)
    return tasks


def write_shard(job: Job, task: ShardTask) -> WrittenShard:
    """Write a shard, its index of documents, and a manifest that marks them as finished.

    Memory is bounded by the shard's share of the index and a few chunks of ids. Raises `DataError` if the disk is full,
    `StoppedError` if the build was stopped.
    """
    rows = _rows_of(job, task)
    chunk_ids = min(max(CHUNK_IDS, MIN_IDS_PER_SPLIT * job.order.num_splits), MAX_CHUNK_IDS)
    chunks = [(begin, min(begin + chunk_ids, task.end)) for begin in range(task.begin, task.end, chunk_ids)]
    with (
        writing(task.path.parent, f"shard {task.number + 1}", (task.end - task.begin) * job.width),
        write_shard_files(task.path, job.dtype) as writer,
    ):
        for ids, begins in ordered_thread_map(partial(_fill, job, rows), chunks, threads=job.threads):
            writer.write(ids, begins)
            job.meter.update(2 * task.number + task.side, Work(0, writer.num_documents, writer.num_tokens))
    written = WrittenShard(task.side, task.number, writer.describe(task.name), writer.max_token_id)
    write_json(_manifest_path(task), {**written._asdict(), "shard": written.shard.model_dump()}, durable=False)
    return written


def finished_shard(job: Job, task: ShardTask) -> WrittenShard | None:
    """Return a shard that an earlier build finished; None if it did not."""
    if not _manifest_path(task).exists():
        return None
    values = json.loads(_manifest_path(task).read_text(encoding="utf-8"))
    written = WrittenShard(**{**values, "shard": Shard.model_validate(values["shard"])})
    shard = written.shard
    sizes = {task.path: shard.num_tokens * job.width, documents_path(task.path): shard.num_documents * DOCUMENT_BYTES}
    is_whole = all(path.exists() and path.stat().st_size == size for path, size in sizes.items())
    return written if is_whole else None


def _manifest_path(task: ShardTask) -> Path:
    return task.path.with_suffix(".json")


def _rows_of(job: Job, task: ShardTask) -> _Rows:
    if task.only is not None:
        split, byte, num_ids = task.only
        return _Rows(np.array([split]), np.array([byte]), np.array([0, num_ids + 1]))
    first, last = (bin << job.order.bin_shift for bin in task.bins)
    return _Rows.of(list(_read_rows(job, task.side, first, last)), task.bins_begin)


def _read_rows(job: Job, side: int, first_key: int, last_key: int) -> Iterator[tuple[int, IndexRows]]:
    """Yield the documents of one side in a range of keys, by split and run."""
    for split in range(job.order.num_splits):
        segments = [segment for segment in Summary.read(job.run_file(split)).segments if segment.side == side]
        for rows in read_index(job.run_file(split), segments, job.width, first_key, last_key):
            if len(rows.keys):
                yield split, rows


def _fill(job: Job, rows: _Rows, chunk: tuple[int, int]) -> tuple[npt.NDArray[np.integer], Numbers]:
    """Return the ids of a chunk of the stream, and where documents begin in it."""
    begin, end = chunk
    rows = rows.between(begin, end)
    ids = np.empty(end - begin, little_endian(job.dtype))
    ends = rows.begins[1:] - 1  # positions of the end-of-text ids, which are not in the run files
    firsts = np.maximum(rows.begins[:-1], begin)
    num_bytes = np.maximum(np.minimum(ends, end) - firsts, 0) * job.width
    bytes_at = rows.bytes_at + (firsts - rows.begins[:-1]) * job.width
    _copy(job, ids, (rows.splits, bytes_at, num_bytes, (firsts - begin) * job.width))
    ids[ends[(begin <= ends) & (ends < end)] - begin] = job.end_of_text_id
    begins = rows.begins[:-1] - begin
    return ids, begins[begins >= 0]


def _copy(job: Job, ids: npt.NDArray[np.integer], places: tuple[Numbers, Numbers, Numbers, Numbers]) -> None:
    """Copy slices of run files to `ids`; `places` are splits, offsets in the run file, sizes, and offsets in `ids`.

    Adjacent slices of a run file are read in one call, straight into their places.
    """
    order = np.lexsort((places[1], places[0]))
    splits, sources, sizes, targets = (numbers[order] for numbers in places)
    is_new = (np.diff(splits, prepend=-1) != 0) | (sources != np.concatenate([[-1], (sources + sizes)[:-1]]))
    bounds = [*np.flatnonzero(is_new).tolist(), len(splits)]
    view = ids.data.cast("B")
    views = (view[at : at + size] for at, size in zip(targets.tolist(), sizes.tolist(), strict=True))
    split, file = -1, None
    with contextlib.ExitStack() as stack:
        for first, last in pairwise(bounds):
            if splits[first] != split or file is None:
                stack.close()  # one file at a time: there may be more splits than a process may open files
                split = int(splits[first])
                file = stack.enter_context(job.run_file(split).open("rb", buffering=0))
            read_vectors(file.fileno(), islice(views, last - first), int(sources[first]), job.run_file(split))
