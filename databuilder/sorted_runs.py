"""Run files: the ids of an input split's documents as sorted runs, each with an index of its keys; one file per split.

    ids: training, validation      │   indexes   │ ids … │ index │ … │ summary │ its length
    └─────────────── a run ────────────────────┘  └─── a run ───┘
    index: key (uint64) of each document, ascending │ end of its ids (uint64), counted from the run's first id

A shard is a range of keys, and so a contiguous slice of each sorted run: the merge reads it without a search. A run
holds `RUN_IDS` ids at most; a longer document is a run of its own. The end-of-text ids are added when shards are
written, not here.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar, final

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import little_endian
from transformerlm.utils.errors import DataError

RUNS_VERSION = 2

RUN_IDS = 1 << 23
"""Maximum ids of a run: the length of the writer's only large array."""
MAX_VECTORS = 1024
"""Buffers per system call: the limit of Linux and macOS."""
WORD_BYTES = 8  # size of an index entry and of the summary's length; also the alignment of indexes

TRAIN, VALID = 0, 1
SIDES = (TRAIN, VALID)

Index = npt.NDArray[np.uint64]
Buffer = TypeVar("Buffer", bound=bytes | memoryview)


class Segment(NamedTuple):
    """The documents of one side in one run."""

    side: int
    num_documents: int
    num_ids: int
    ids_at: int
    """Offset of the ids in the file."""
    index_at: int


@dataclass(frozen=True)
class Summary:
    """The content of a run file: documents, ids and bytes of text, each for training and for validation."""

    segments: tuple[Segment, ...]
    num_documents: tuple[int, int]
    num_ids: tuple[int, int]
    num_text_bytes: tuple[int, int]
    counts: dict[str, int]
    """Counts of the text read, see `databuilder.pieces.TextCounts`."""
    hashes: tuple[int, ...]
    """Smallest and largest hash of the documents; empty without documents, or if the split is for validation only."""
    valid_below: int
    """Documents with a hash below this went to validation."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the summary of the run file at `path`."""
        with path.open("rb") as file:
            file.seek(-WORD_BYTES, os.SEEK_END)
            length = int.from_bytes(file.read(WORD_BYTES), "little")
            file.seek(-WORD_BYTES - length, os.SEEK_END)
            values: dict[str, Any] = json.loads(file.read(length))
        return cls(
            tuple(Segment(*segment) for segment in values.pop("segments")),
            counts=values.pop("counts"),
            valid_below=values.pop("valid_below"),
            **{name: tuple(of_sides) for name, of_sides in values.items()},
        )


@final
class RunWriter:
    """Writes a run file. Large arrays are handed to the system without a copy."""

    def __init__(self, file: IO[bytes], dtype: str) -> None:
        self._file = file.fileno()
        self._at = 0
        self._ids = np.empty(RUN_IDS, little_endian(dtype))
        self._bytes = self._ids.data.cast("B")
        self._segments: list[Segment] = []
        self._text_bytes = [0, 0]
        self._begin_run()

    def _begin_run(self) -> None:
        self._used = self._complete = 0  # ids in memory; ids of complete documents
        self._ends: list[npt.NDArray[np.int64]] = []
        self._keys: list[Index] = []
        self._sides: list[npt.NDArray[np.bool_]] = []
        self._spilled_at: int | None = None  # offset of an open document that has become a run of its own

    @property
    def num_ids(self) -> int:
        """Number of ids added so far."""
        return sum(segment.num_ids for segment in self._segments) + self._used

    def add(
        self,
        ids: npt.NDArray[np.integer],
        ends: npt.NDArray[np.int64],
        *,
        keys: Index,
        validation: npt.NDArray[np.bool_],
        text_bytes: npt.NDArray[np.int64],
    ) -> None:
        """Append whole documents: `ids` of all of them, and per document where its ids end, key, side and text size."""
        assert self._used == self._complete, "the document before is open"
        if self._used + len(ids) > len(self._ids):
            self._write_run()
        if len(ids) > len(self._ids):  # longer than a run: one by one, as long documents
            for row, (begin, end) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
                self.extend(ids[begin:end])
                self.close(key=int(keys[row]), validation=bool(validation[row]), text_bytes=int(text_bytes[row]))
            return
        self._append(ids)
        self._close(ends + (self._used - len(ids)), keys, validation, text_bytes)

    def extend(self, ids: npt.NDArray[np.integer]) -> None:
        """Append ids of a long document, which `close` or `drop` ends."""
        for first in range(0, len(ids), RUN_IDS):
            piece = ids[first : first + RUN_IDS]
            if self._used + len(piece) > len(self._ids):
                self._make_room(len(piece))
            self._append(piece)

    def close(self, *, key: int, validation: bool, text_bytes: int) -> None:
        """End the long document."""
        end = np.array([self._used])
        self._close(end, np.array([key], np.uint64), np.array([validation]), np.array([text_bytes]))
        if self._spilled_at is not None:
            self._write_run()

    def drop(self) -> None:
        """Discard the long document."""
        if self._spilled_at is not None:
            os.ftruncate(self._file, self._spilled_at)
            os.lseek(self._file, self._spilled_at, os.SEEK_SET)
            self._at = self._spilled_at
            self._begin_run()
        self._used = self._complete

    def finish(self, counts: dict[str, int], hashes: tuple[int, ...], valid_below: int) -> Summary:
        """Write the last run and the summary; `counts` is `TextCounts.to_json` of the text."""
        assert self._used == self._complete, "a document is open"
        self._write_run()
        of_sides = [[segment for segment in self._segments if segment.side == side] for side in SIDES]
        train_documents, valid_documents = (sum(segment.num_documents for segment in side) for side in of_sides)
        train_ids, valid_ids = (sum(segment.num_ids for segment in side) for side in of_sides)
        train_bytes, valid_bytes = self._text_bytes
        summary = Summary(
            tuple(self._segments),
            (train_documents, valid_documents),
            (train_ids, valid_ids),
            (train_bytes, valid_bytes),
            counts,
            hashes,
            valid_below,
        )
        data = json.dumps(asdict(summary)).encode("ascii")
        self._write([data, len(data).to_bytes(WORD_BYTES, "little")])
        return summary

    def _append(self, ids: npt.NDArray[np.integer]) -> None:
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)

    def _close(
        self,
        ends: npt.NDArray[np.int64],
        keys: Index,
        validation: npt.NDArray[np.bool_],
        text_bytes: npt.NDArray[np.int64],
    ) -> None:
        self._ends.append(ends)
        self._keys.append(keys)
        self._sides.append(validation)
        self._complete = self._used
        in_validation = int(text_bytes[validation].sum())
        self._text_bytes[VALID] += in_validation
        self._text_bytes[TRAIN] += int(text_bytes.sum()) - in_validation

    def _make_room(self, wanted: int) -> None:
        """Write the complete documents; then also the ids of the open document, if it still does not fit in memory."""
        begun = self._ids[self._complete : self._used].copy()
        if self._complete:
            self._used = self._complete
            self._write_run()
            self._append(begun)
        if self._used + wanted > len(self._ids):
            if self._spilled_at is None:
                self._spilled_at = self._at
            self._write([self._bytes[: self._used * self._ids.itemsize]])
            self._used = 0

    def _write_run(self) -> None:
        """Write the complete documents as a run, sorted by side and key; the sort is stable."""
        if not self._ends:
            return
        keys, sides, ends = np.concatenate(self._keys), np.concatenate(self._sides), np.concatenate(self._ends)
        order = np.lexsort((keys, sides))
        lengths = np.diff(ends, prepend=0)
        width = self._ids.itemsize
        begins_at, ends_at = (ends - lengths)[order] * width, ends[order] * width
        ids_at = self._at if self._spilled_at is None else self._spilled_at
        places = zip(begins_at.tolist(), ends_at.tolist(), strict=True)
        self._write(self._bytes[begin:end] for begin, end in places)
        lengths = lengths[order]
        lengths[0] += (self._at - ids_at) // width - self._used  # ids of a long document that were written before
        self._write([bytes(-self._at % WORD_BYTES)])
        num_train = len(order) - np.count_nonzero(sides)
        for side, rows in ((TRAIN, slice(None, num_train)), (VALID, slice(num_train, None))):
            if not len(order[rows]):
                continue
            index_ends = np.cumsum(lengths[rows])
            num_ids = int(index_ends[-1])
            self._segments.append(Segment(side, len(index_ends), num_ids, ids_at, self._at))
            self._write([keys[order[rows]].astype("<u8").tobytes(), index_ends.astype("<u8").tobytes()])
            ids_at += num_ids * width
        self._begin_run()

    def _write(self, buffers: Iterable[bytes | memoryview]) -> None:
        self._at += write_vectors(self._file, buffers)


def write_vectors(file: int, buffers: Iterable[bytes | memoryview]) -> int:
    """Write all `buffers` in order, and return their total size in bytes."""
    written = 0
    for group in _groups(buffers):
        wanted = sum(map(len, group))
        done = os.writev(file, group)
        if done < wanted:  # a full disk accepts a part, and raises an error on the next call
            rest = memoryview(b"".join(group))[done:]
            while rest:
                rest = rest[os.write(file, rest) :]
        written += wanted
    return written


def read_vectors(file: int, buffers: Iterable[memoryview], offset: int, path: Path) -> None:
    """Fill `buffers` in order with the bytes from `offset` on. Raises `DataError` if the file ends too early."""
    for group in _groups(buffers):
        while group:
            done = os.preadv(file, group, offset)  # network file systems may return a part
            if not done and any(map(len, group)):
                raise DataError(f"{path}: ends early; remove its folder, and make the data again")
            offset += done
            while group and done >= len(group[0]):
                done -= len(group.pop(0))
            if group:
                group[0] = group[0][done:]


def _groups(buffers: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Yield groups of at most `MAX_VECTORS` buffers; few exist at a time, which spares the garbage collector."""
    buffers = iter(buffers)
    while group := list(islice(buffers, MAX_VECTORS)):
        yield group


class IndexRows(NamedTuple):
    """Documents of a segment."""

    keys: Index
    begins: npt.NDArray[np.int64]
    """Offset of each document's ids in the file."""
    lengths: npt.NDArray[np.int64]
    """Number of ids."""


def read_index(
    path: Path, segments: Iterable[Segment], width: int, first_key: int = 0, last_key: int = 1 << 64
) -> Iterator[IndexRows]:
    """Yield the documents of each segment with `first_key <= key < last_key`; an id has `width` bytes.

    Only the pages of the index that are needed are read.
    """
    with path.open("rb") as file:
        # Not closed here: the last array closes it, and a profiler's thread may keep one alive a little longer.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for segment in segments:
        count = segment.num_documents
        keys = np.frombuffer(mapped, "<u8", count, segment.index_at)
        ends = np.frombuffer(mapped, "<u8", count, segment.index_at + count * WORD_BYTES)
        low, high = _place(keys, first_key), _place(keys, last_key)
        begin = int(ends[low - 1]) if low else 0
        rows_ends = ends[low:high].astype(np.int64)
        lengths = np.diff(rows_ends, prepend=begin)
        yield IndexRows(keys[low:high].astype(np.uint64), segment.ids_at + (rows_ends - lengths) * width, lengths)


def _place(keys: Index, key: int) -> int:
    return len(keys) if key >= 1 << 64 else int(np.searchsorted(keys, np.uint64(key)))
