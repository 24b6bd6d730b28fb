"""The first phase of a build: a part of the sources becomes a spool of ids."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from databuilder.job import Job, Work, expected_id_bytes
from databuilder.pieces import Batch, Documents, End, Piece, TextCounts
from databuilder.readers.dispatch import read_part
from databuilder.sorted_runs import Index, SpoolWriter, Summary
from databuilder.splits import Part
from databuilder.text_hash import TextHash, hash_texts
from transformerlm.utils.files import atomic_write, writing

BATCH_BYTES = 1 << 20
"""Text that is encoded at a time: so much that the call does not count, so little that it stays in the processor's
cache."""


def encode_part(job: Job, part: Part) -> tuple[int, Summary]:
    """Write the spool of `part`, whole or not at all; return the part's number and what the spool holds.

    It gets the name of a finished one by `finish_part`. Raises `DataError` for a source that cannot be used and for a
    disk that is full, `StoppedError` if it is to stop.
    """
    vocab_size = job.tokenizer.tokenizer.vocab_size
    with (
        writing(job.folder, f"part {part.number + 1} of the ids", expected_id_bytes(part.num_bytes, vocab_size)),
        atomic_write(_written(job, part.number), durable=False) as file,
    ):
        summary = _PartEncoder(job, part, SpoolWriter(file, job.dtype)).run()
    return part.number, summary


def finish_part(job: Job, number: int) -> None:
    """Have the disk keep what `encode_part` wrote, and give it its name.

    That is for whoever waits for the tasks, so that the tasks need not wait for the disk.
    """
    with _written(job, number).open("rb") as file:
        os.fsync(file.fileno())
    _written(job, number).rename(job.spool(number))


def _written(job: Job, number: int) -> Path:
    return job.spool(number).with_suffix(".written")


class _PartEncoder:
    """Reads, encodes, hashes."""

    def __init__(self, job: Job, part: Part, spool: SpoolWriter) -> None:
        self._job = job
        self._part = part
        self._spool = spool
        self._tokenizer = job.tokenizer.tokenizer
        self._counts = TextCounts()
        self._read_bytes = 0
        self._num_documents = 0
        self._smallest_hash, self._largest_hash = 1 << 64, -1

    def run(self) -> Summary:
        job = self._job
        compiled = self._tokenizer.is_compiled
        batches = read_part(self._part, job.reading, self._counts, self._note_read, compiled=compiled)
        for group in grouped(batches, BATCH_BYTES * job.threads):
            if isinstance(group, LongDocument):
                self._encode_long(group)
            else:
                self._encode(group)
        hashes = (self._smallest_hash, self._largest_hash) if self._largest_hash >= 0 else ()
        return self._spool.finish(self._counts.to_json(), hashes, job.valid_below)

    def _encode(self, documents: Documents) -> None:
        data, text_ends = documents.data, documents.ends
        ids, ends = self._tokenizer.encode_joined(data, text_ends, num_threads=self._job.threads, allowed_special=set())
        hashes = hash_texts(data, text_ends, compiled=self._tokenizer.is_compiled)
        self._spool.add(
            ids,
            ends,
            keys=self._job.order.keys(hashes, self._part.number, self._num_documents),
            validation=self._is_validation(hashes),
            text_bytes=np.diff(text_ends, prepend=0),
        )
        self._num_documents += len(documents)
        self._tell()

    def _encode_long(self, document: "LongDocument") -> None:
        for ids in self._tokenizer.encode_parts(document.texts(), num_threads=self._job.threads, allowed_special=set()):
            self._spool.extend(ids)
            self._tell()
        if document.end is End.DROPPED:
            self._spool.drop()
            return
        hashes = document.hash.value()
        self._spool.close(
            key=int(self._job.order.keys(hashes, self._part.number, self._num_documents)[0]),
            validation=bool(self._is_validation(hashes)[0]),
            text_bytes=document.num_bytes,
        )
        self._num_documents += 1

    def _is_validation(self, hashes: Index) -> npt.NDArray[np.bool_]:
        """Say which documents go to validation: by their text alone, so that no other file moves them across."""
        if self._part.number >= self._job.first_valid_part:
            return np.ones(len(hashes), np.bool_)
        self._smallest_hash = min(self._smallest_hash, int(hashes.min()))
        self._largest_hash = max(self._largest_hash, int(hashes.max()))
        return hashes < np.uint64(self._job.valid_below)

    def _note_read(self, num_bytes: int) -> None:
        self._read_bytes = num_bytes

    def _tell(self) -> None:
        work = Work(self._read_bytes, self._num_documents, self._spool.num_ids)
        self._job.meter.tell(self._part.number, work)


def grouped(batches: Iterable[Batch], batch_bytes: int = BATCH_BYTES) -> "Iterator[Documents | LongDocument]":
    """Yield whole documents, about `batch_bytes` of them at a time, and long ones, to be read before the next."""
    texts: list[bytes] = []
    size = 0
    items = _items(batches)
    for item in items:
        if isinstance(item, Piece) and item.end is End.KEPT:
            texts.append(item.text)
            size += len(item.text)
            if size < batch_bytes:
                continue
        if texts:
            yield Documents.joined(texts)
            texts, size = [], 0
        if isinstance(item, Documents):
            yield item
        elif item.end is End.OPEN:
            yield LongDocument(item, items)
    if texts:
        yield Documents.joined(texts)


def _items(batches: Iterable[Batch]) -> Iterator[Documents | Piece]:
    """Yield pieces one by one, and whole documents that lie together as they are."""
    for batch in batches:
        if isinstance(batch, Documents):
            yield batch
        else:
            yield from batch


class LongDocument:
    """A document in several pieces, which are gone when they have been read."""

    def __init__(self, first: Piece, following: Iterator[Documents | Piece]) -> None:
        self._pieces = chain([first], following)
        self.hash = TextHash()
        self.num_bytes = 0
        self.end = End.OPEN

    def texts(self) -> Iterator[bytes]:
        """Yield the pieces' texts; what else is to know of the document is known then."""
        for piece in self._pieces:
            assert isinstance(piece, Piece), "a document is open"
            self.hash.update(piece.text)
            self.num_bytes += len(piece.text)
            self.end = piece.end
            if piece.text:
                yield piece.text
            if piece.end is not End.OPEN:
                return
