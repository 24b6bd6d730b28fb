"""The second phase of a build: the documents of all spools, in the order of their keys, as shards of exact size.

    part 0  ──▒▒──────▓▓────        the keys of a shard are a range: one stretch of each run
    part 1  ───▒▒────▓▓─────
                │     │
    shard 0   ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒┊▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓   shard 1
                              └ a document may go on in the next

Which keys belong to a shard follows from how many ids there are in each of many buckets of keys.
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
"""Ids of a shard that are put together at a time, at least."""
MOST_CHUNK_IDS = 1 << 23
PART_IDS = 1 << 15
"""As many for each part, so that what is read from one at a time is worth a call."""

Numbers = npt.NDArray[np.int64]


class Document(NamedTuple):
    """The ids of a document, or of a part of one, in a spool."""

    part: int
    byte: int
    """Where they begin."""
    num_ids: int


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: the ids `begin` to `end` of one side's stream."""

    side: int
    number: int
    begin: int
    end: int
    path: Path
    """Where it is to lie."""
    name: str
    """That it will have in the end."""
    buckets: tuple[int, int]
    """The first bucket of keys with documents of the shard, and the one after the last."""
    buckets_begin: int
    """Place in the stream where the first of these buckets begins."""
    only: Document | None = None
    """All that the stream holds, whatever the buckets say; see `single`."""


class WrittenShard(NamedTuple):
    """A shard that lies where its task said."""

    side: int
    number: int
    shard: Shard
    max_token_id: int

    @property
    def task_number(self) -> int:
        """Of all shards of both sides."""
        return 2 * self.number + self.side


class _Rows(NamedTuple):
    """Documents in the order of the output."""

    parts: Numbers
    bytes_at: Numbers
    """Where in the spool of their part the ids begin."""
    begins: Numbers
    """Places in the stream, and the place behind the last one; the last id of a document is that of end-of-text."""

    @classmethod
    def of(cls, documents: list[tuple[int, IndexRows]], begin: int) -> Self:
        """Return documents of several parts in the order of their keys; equal ones by part and place."""
        keys = np.concatenate([rows.keys for _, rows in documents])
        order = np.argsort(keys, kind="stable")
        parts = np.repeat([part for part, _ in documents], [len(rows.keys) for _, rows in documents])
        lengths = np.concatenate([rows.lengths for _, rows in documents])[order] + 1
        begins = np.concatenate([[0], np.cumsum(lengths)]) + begin
        return cls(parts[order], np.concatenate([rows.begins for _, rows in documents])[order], begins)

    def between(self, begin: int, end: int) -> Self:
        """Return the documents that lie wholly or in part between two places of the stream."""
        first = int(np.searchsorted(self.begins, begin, side="right")) - 1
        last = int(np.searchsorted(self.begins[:-1], end))
        return type(self)(self.parts[first:last], self.bytes_at[first:last], self.begins[first : last + 1])


def ids_by_bucket(job: Job, side: int) -> Numbers:
    """Return how many ids, with those of end-of-text, the documents in each bucket of keys have."""
    shift = np.uint64(job.order.bucket_shift)
    total = np.zeros(job.order.num_buckets, np.int64)
    for _, rows in _read_rows(job, side, 0, 1 << 64):
        buckets = (rows.keys >> shift).astype(np.int64)
        firsts = np.flatnonzero(np.diff(buckets, prepend=-1))
        total[buckets[firsts]] += np.add.reduceat(rows.lengths + 1, firsts)
    return total


def cut_into_shards(
    by_bucket: Numbers, *, shard_tokens: int, side: int, folder: Path, output: Path, only: Document | None = None
) -> list[ShardTask]:
    """Return the shards of a stream with so many ids in each bucket, which are to be written to `folder`."""
    bucket_ends = np.cumsum(by_bucket)
    num_ids = int(bucket_ends[-1])
    tasks = []
    for number, begin in enumerate(range(0, num_ids, shard_tokens)):
        end = min(begin + shard_tokens, num_ids)
        first = int(np.searchsorted(bucket_ends, begin, side="right"))
        task = ShardTask(
            side=side,
            number=number,
            begin=begin,
            end=end,
            path=folder / f"shard-{number:05d}",
            name=output.name if num_ids <= shard_tokens else f"{output.stem}.{number:05d}{output.suffix}",
            buckets=(first, int(np.searchsorted(bucket_ends, end)) + 1),
            buckets_begin=int(bucket_ends[first] - by_bucket[first]),
            only=only,
        )
        tasks.append(task)
    return tasks


def write_shard(job: Job, task: ShardTask) -> WrittenShard:
    """Write a shard and its index of documents, each whole or not at all, and note that it is done.

    Memory is bounded by the shard's share of the index and a few chunks of ids. Raises `DataError` for a full disk,
    `StoppedError` if it is to stop.
    """
    rows = _rows_of(job, task)
    chunk_ids = min(max(CHUNK_IDS, PART_IDS * job.order.num_parts), MOST_CHUNK_IDS)
    chunks = [(begin, min(begin + chunk_ids, task.end)) for begin in range(task.begin, task.end, chunk_ids)]
    with (
        writing(task.path.parent, f"shard {task.number + 1}", (task.end - task.begin) * job.width),
        write_shard_files(task.path, job.dtype) as writer,
    ):
        for ids, begins in ordered_thread_map(partial(_fill, job, rows), chunks, threads=job.threads):
            writer.write(ids, begins)
            job.meter.tell(2 * task.number + task.side, Work(0, writer.num_documents, writer.num_tokens))
    written = WrittenShard(task.side, task.number, writer.describe(task.name), writer.max_token_id)
    write_json(_note(task), {**written._asdict(), "shard": written.shard.model_dump()}, durable=False)
    return written


def finished_shard(job: Job, task: ShardTask) -> WrittenShard | None:
    """Return a shard that was written earlier; None if it was not."""
    if not _note(task).exists():
        return None
    values = json.loads(_note(task).read_text(encoding="utf-8"))
    written = WrittenShard(**{**values, "shard": Shard.model_validate(values["shard"])})
    shard = written.shard
    sizes = {task.path: shard.num_tokens * job.width, documents_path(task.path): shard.num_documents * DOCUMENT_BYTES}
    is_whole = all(path.exists() and path.stat().st_size == size for path, size in sizes.items())
    return written if is_whole else None


def _note(task: ShardTask) -> Path:
    return task.path.with_suffix(".json")


def _rows_of(job: Job, task: ShardTask) -> _Rows:
    if task.only is not None:
        part, byte, num_ids = task.only
        return _Rows(np.array([part]), np.array([byte]), np.array([0, num_ids + 1]))
    first, last = (bucket << job.order.bucket_shift for bucket in task.buckets)
    return _Rows.of(list(_read_rows(job, task.side, first, last)), task.buckets_begin)


def _read_rows(job: Job, side: int, first_key: int, last_key: int) -> Iterator[tuple[int, IndexRows]]:
    """Yield the documents of one side with such keys, by part and run."""
    for part in range(job.order.num_parts):
        segments = [segment for segment in Summary.read(job.spool(part)).segments if segment.side == side]
        for rows in read_index(job.spool(part), segments, job.width, first_key, last_key):
            if len(rows.keys):
                yield part, rows


def _fill(job: Job, rows: _Rows, chunk: tuple[int, int]) -> tuple[npt.NDArray[np.integer], Numbers]:
    """Return the ids between two places of the stream, and where documents begin in them."""
    begin, end = chunk
    rows = rows.between(begin, end)
    ids = np.empty(end - begin, little_endian(job.dtype))
    ends = rows.begins[1:] - 1  # of the documents' own ids
    firsts = np.maximum(rows.begins[:-1], begin)
    num_bytes = np.maximum(np.minimum(ends, end) - firsts, 0) * job.width
    bytes_at = rows.bytes_at + (firsts - rows.begins[:-1]) * job.width
    _copy(job, ids, (rows.parts, bytes_at, num_bytes, (firsts - begin) * job.width))
    ids[ends[(begin <= ends) & (ends < end)] - begin] = job.end_of_text_id
    begins = rows.begins[:-1] - begin
    return ids, begins[begins >= 0]


def _copy(job: Job, ids: npt.NDArray[np.integer], places: tuple[Numbers, Numbers, Numbers, Numbers]) -> None:
    """Copy stretches of spools to `ids`: their parts, bytes in the spool, numbers of bytes, and bytes in `ids`.

    What lies together in a spool is read at once, and goes straight to where it belongs.
    """
    order = np.lexsort((places[1], places[0]))
    parts, sources, sizes, targets = (numbers[order] for numbers in places)
    is_new = (np.diff(parts, prepend=-1) != 0) | (sources != np.concatenate([[-1], (sources + sizes)[:-1]]))
    bounds = [*np.flatnonzero(is_new).tolist(), len(parts)]
    view = ids.data.cast("B")
    views = (view[at : at + size] for at, size in zip(targets.tolist(), sizes.tolist(), strict=True))
    part, file = -1, None
    with contextlib.ExitStack() as stack:
        for first, last in pairwise(bounds):
            if parts[first] != part or file is None:
                stack.close()  # one at a time: there may be more parts than a process may have files
                part = int(parts[first])
                file = stack.enter_context(job.spool(part).open("rb", buffering=0))
            read_vectors(file.fileno(), islice(views, last - first), int(sources[first]), job.spool(part))
