"""Positions of documents in a token file: read from the lists beside it, or found by searching for end-of-text."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import DOCUMENT_BYTES, MAKE_DATA, TokenFileInfo, documents_path, shard_paths
from transformerlm.token_files.stream import TokenStream
from transformerlm.utils.errors import DataError

Begins = npt.NDArray[np.int64]

_IDS_AT_A_TIME = 1 << 20


class Document(NamedTuple):
    """A document: the position of its first id in the stream, and its number of ids."""

    begin: int
    num_tokens: int


def document_begins(
    path: Path, info: TokenFileInfo, stream: TokenStream, on_read: Callable[[float], None] | None = None
) -> Iterator[Begins]:
    """Yield the positions where documents begin in the stream, ascending, in arrays of bounded size.

    A file of format 1 has no lists: all ids are read, and a document begins after each end-of-text id; `on_read` is
    called with the share done, from 0 to 1. Raises `DataError` if a list is missing or does not have the length in the
    sidecar, or if there is neither a list nor an end-of-text id.
    """
    if not info.shards:
        yield from _looked_for(path, info, stream, on_read)
    first = 0
    for file, shard in zip(shard_paths(path, info), info.shards, strict=False):
        yield from (begins + first for begins in _listed(documents_path(file), shard.num_documents))
        first += shard.num_tokens


def longest_documents(begins: Iterable[Begins], num_tokens: int, count: int) -> list[Document]:
    """Return the `count` longest documents of a stream of `num_tokens` ids, longest first, in bounded memory.

    Documents of equal length are in the order of the stream.
    """
    found: list[Document] = []
    for starts, following in pairwise(_with_end(begins, num_tokens)):
        lengths = np.diff(starts, append=following[:1])
        longest = np.argsort(-lengths, kind="stable")[:count]
        found += [Document(int(starts[place]), int(lengths[place])) for place in longest]
        found = sorted(found, key=lambda document: (-document.num_tokens, document.begin))[:count]
    return found


def _with_end(begins: Iterable[Begins], num_tokens: int) -> Iterator[Begins]:
    """Yield the arrays that are not empty, then the end of the stream as a last array."""
    yield from (some for some in begins if len(some))
    yield np.array([num_tokens])


def _listed(file: Path, num_documents: int) -> Iterator[Begins]:
    num_bytes = file.stat().st_size if file.exists() else 0
    if num_bytes != num_documents * DOCUMENT_BYTES:
        raise DataError(
            f"{file}: has {num_bytes} bytes where {num_documents} documents need {num_documents * DOCUMENT_BYTES}; "
            f"make the data again with {MAKE_DATA}"
        )
    for first in range(0, num_documents, _IDS_AT_A_TIME):
        count = min(_IDS_AT_A_TIME, num_documents - first)
        yield np.fromfile(file, dtype="<u8", count=count, offset=first * DOCUMENT_BYTES).astype(np.int64)


def _looked_for(
    path: Path, info: TokenFileInfo, stream: TokenStream, on_read: Callable[[float], None] | None
) -> Iterator[Begins]:
    if info.end_of_text_id is None:
        raise DataError(f"{path}: has no end-of-text id, so its documents cannot be separated")
    yield np.zeros(min(1, len(stream)), dtype=np.int64)
    for first in range(0, len(stream), _IDS_AT_A_TIME):
        ids = stream[first : first + _IDS_AT_A_TIME]
        begins = np.flatnonzero(ids == info.end_of_text_id) + first + 1
        yield begins[begins < len(stream)]
        if on_read is not None:
            on_read(min(1.0, (first + len(ids)) / len(stream)))
