"""Validation data from a corpus that is a single document: the end of the document.

The document is cut between two ids, at the end of a line if possible, so that both sides together are all its ids.
"""

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from databuilder.job import Job
from databuilder.merge_shards import Document
from databuilder.sorted_runs import Summary, read_index, read_vectors
from transformerlm.token_files.index import little_endian

_IDS_PER_READ = 1 << 20


class CutDocument(NamedTuple):
    """The two parts of a document, and the bytes of text in each."""

    train: Document
    valid: Document
    num_text_bytes: tuple[int, int]


def cut_only_document(job: Job) -> CutDocument:
    """Cut the only document after the first line that ends in its last `valid_fraction`.

    If no line ends there, it is cut exactly at that fraction. One side is empty if there are too few ids.
    """
    document, text_bytes = _only_document(job)
    tokenizer = job.tokenizer.tokenizer
    vocab = [tokenizer.vocab.get(token_id, b"") for token_id in range(tokenizer.vocab_size)]
    ends_line = np.array([token.endswith(b"\n") for token in vocab])
    sizes = np.array([len(token) for token in vocab])
    wanted = cut = round(document.num_ids * (1 - job.valid_fraction))
    for first in range(wanted, document.num_ids, _IDS_PER_READ):
        found = np.flatnonzero(ends_line[_read(job, document, first)])
        if len(found):
            line_end = first + int(found[0]) + 1
            cut = line_end if line_end < document.num_ids else wanted
            break
    starts = range(cut, document.num_ids, _IDS_PER_READ)
    valid_bytes = sum(int(sizes[_read(job, document, first)].sum()) for first in starts)
    split, byte, num_ids = document
    return CutDocument(
        Document(split, byte, cut),
        Document(split, byte + cut * job.width, num_ids - cut),
        (text_bytes - valid_bytes, valid_bytes),
    )


def _only_document(job: Job) -> tuple[Document, int]:
    """Return the document, and the bytes of its text."""
    for split in range(job.order.num_splits):
        summary = Summary.read(job.run_file(split))
        for rows in read_index(job.run_file(split), summary.segments, job.width):
            document = Document(split, int(rows.begins[0]), int(rows.lengths[0]))
            return document, sum(summary.num_text_bytes)
    raise AssertionError("there is no document")


def _read(job: Job, document: Document, first: int) -> npt.NDArray[np.integer]:
    ids = np.empty(min(_IDS_PER_READ, document.num_ids - first), little_endian(job.dtype))
    path = job.run_file(document.split)
    file = os.open(path, os.O_RDONLY)
    try:
        read_vectors(file, [ids.data.cast("B")], document.byte + first * job.width, path)
    finally:
        os.close(file)
    return ids
