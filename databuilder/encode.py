"""The first phase of a build: encode an input split, and write its documents as sorted runs."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from databuilder.job import Job, Work, expected_id_bytes
from databuilder.pieces import Batch, Documents, End, Piece, TextCounts
from databuilder.readers.dispatch import read_split
from databuilder.sorted_runs import Index, RunWriter, Summary
from databuilder.source_file import InputSplit
from databuilder.text_hash import TextHash, hash_texts
from transformerlm.utils.files import atomic_write, writing

BATCH_BYTES = 1 << 20
"""Text encoded per call: large enough to amortise the call, small enough to stay in the processor's cache."""


def encode_split(job: Job, split: InputSplit) -> tuple[int, Summary]:
    """Write the run file of `split`, whole or not at all; return the split's number and the file's summary.

    `finish_split` gives the file its final name. Raises `DataError` if a source cannot be used or the disk is full,
    `StoppedError` if the build was stopped.
    """
    vocab_size = job.tokenizer.tokenizer.vocab_size
    with (
        writing(job.folder, f"part {split.number + 1} of the ids", expected_id_bytes(split.num_bytes, vocab_size)),
        atomic_write(_written(job, split.number), durable=False) as file,
    ):
        summary = _SplitEncoder(job, split, RunWriter(file, job.dtype)).run()
    return split.number, summary


def finish_split(job: Job, number: int) -> None:
    """Flush the file that `encode_split` wrote to disk, and give it its final name.

    Called by the coordinating process, so that workers do not wait for the disk.
    """
    with _written(job, number).open("rb") as file:
        os.fsync(file.fileno())
    _written(job, number).rename(job.run_file(number))


def _written(job: Job, number: int) -> Path:
    return job.run_file(number).with_suffix(".written")


class _SplitEncoder:
    """Reads, encodes and hashes the documents of a split."""

    def __init__(self, job: Job, split: InputSplit, runs: RunWriter) -> None:
        self._job = job
        self._split = split
        self._runs = runs
        self._tokenizer = job.tokenizer.tokenizer
        self._counts = TextCounts()
        self._read_bytes = 0
        self._num_documents = 0
        self._smallest_hash, self._largest_hash = 1 << 64, -1

    def run(self) -> Summary:
        job = self._job
        compiled = self._tokenizer.is_compiled
        batches = read_split(self._split, job.reading, self._counts, self._note_read, compiled=compiled)
        for group in grouped(batches, BATCH_BYTES * job.threads):
            if isinstance(group, LongDocument):
                self._encode_long(group)
            else:
                self._encode(group)
        hashes = (self._smallest_hash, self._largest_hash) if self._largest_hash >= 0 else ()
        return self._runs.finish(self._counts.to_json(), hashes, job.valid_below)

    def _encode(self, documents: Documents) -> None:
        data, text_ends = documents.data, documents.ends
        ids, ends = self._tokenizer.encode_joined(data, text_ends, num_threads=self._job.threads, allowed_special=set())
        hashes = hash_texts(data, text_ends, compiled=self._tokenizer.is_compiled)
        self._runs.add(
            ids,
            ends,
            keys=self._job.order.keys(hashes, self._split.number, self._num_documents),
            validation=self._is_validation(hashes),
            text_bytes=np.diff(text_ends, prepend=0),
        )
        self._num_documents += len(documents)
        self._report()

    def _encode_long(self, document: "LongDocument") -> None:
        for ids in self._tokenizer.encode_parts(document.texts(), num_threads=self._job.threads, allowed_special=set()):
            self._runs.extend(ids)
            self._report()
        if document.end is End.DROPPED:
            self._runs.drop()
            return
        hashes = document.hash.value()
        self._runs.close(
            key=int(self._job.order.keys(hashes, self._split.number, self._num_documents)[0]),
            validation=bool(self._is_validation(hashes)[0]),
            text_bytes=document.num_bytes,
        )
        self._num_documents += 1

    def _is_validation(self, hashes: Index) -> npt.NDArray[np.bool_]:
        """Return a mask of the documents that go to validation; it depends on their text alone, not on other files."""
        if self._split.number >= self._job.first_valid_split:
            return np.ones(len(hashes), np.bool_)
        self._smallest_hash = min(self._smallest_hash, int(hashes.min()))
        self._largest_hash = max(self._largest_hash, int(hashes.max()))
        return hashes < np.uint64(self._job.valid_below)

    def _note_read(self, num_bytes: int) -> None:
        self._read_bytes = num_bytes

    def _report(self) -> None:
        work = Work(self._read_bytes, self._num_documents, self._runs.num_ids)
        self._job.meter.update(self._split.number, work)


def grouped(batches: Iterable[Batch], batch_bytes: int = BATCH_BYTES) -> "Iterator[Documents | LongDocument]":
    """Yield whole documents in groups of about `batch_bytes`, and long ones by themselves.

    A `LongDocument` must be read to its end before the next item is requested.
    """
    texts: list[bytes] = []
    size = 0
    items = _items(batches)
    for item in items:
        if isinstance(item, Piece) and item.end is End.FINAL:
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
    """Yield `Documents` unchanged, and the pieces of other batches one by one."""
    for batch in batches:
        if isinstance(batch, Documents):
            yield batch
        else:
            yield from batch


class LongDocument:
    """A document in several pieces, which can be read once."""

    def __init__(self, first: Piece, following: Iterator[Documents | Piece]) -> None:
        self._pieces = chain([first], following)
        self.hash = TextHash()
        self.num_bytes = 0
        self.end = End.OPEN

    def texts(self) -> Iterator[bytes]:
        """Yield the texts of the pieces; afterwards `hash`, `num_bytes` and `end` describe the document."""
        for piece in self._pieces:
            assert isinstance(piece, Piece), "a document is open"
            self.hash.update(piece.text)
            self.num_bytes += len(piece.text)
            self.end = piece.end
            if piece.text:
                yield piece.text
            if piece.end is not End.OPEN:
                return
