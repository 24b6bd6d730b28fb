"""The ids of a token file, one file or many shards, as one read-only stream on disk.

    X.00000.dat  0 ………… n │ X.00001.dat  n ………… 2n │ X.00002.dat  2n …… end
                      └─ stream[n - 3 : n + 4] ─┘

The files are memory-mapped, so only the pages that are used are read from disk. A page counts as this process's memory
until it is released, which the stream does from time to time. Released pages usually stay in the operating system's
cache, so reading them again is cheap.
"""

import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import MAKE_DATA, TokenFileInfo, little_endian, shard_paths
from transformerlm.utils.errors import DataError

RESIDENT_BYTES = 64 << 20
"""Pages are released after about this many bytes have been read."""

MAX_MAPPED = 256
"""Files mapped at a time; each uses a file descriptor, and a process may have about a thousand."""

# A read also maps cached pages around it: Linux maps 16 at once, at either end.
_BYTES_AROUND = 128 << 10


class _Version(NamedTuple):
    """Identity of a file's content; it changes if the file is replaced or written to."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_Version":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@final
class TokenStream:
    """The concatenated ids of several files: `len(stream)`, and `stream[begin:end]` as a new array.

    Not thread-safe.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], dtype: str) -> None:
        """`files` are pairs of a path and its number of ids of type `dtype` ("uint16" or "uint32").

        Raises `DataError` if a file is missing or has another size.
        """
        self.dtype = little_endian(dtype)
        self._paths = [path for path, _ in files]
        self._begins = [0, *accumulate(num_ids for _, num_ids in files)]
        self._versions = [_version(path, num_ids * self.dtype.itemsize) for path, num_ids in files]
        self._maps: dict[int, mmap.mmap] = {}
        self._read_bytes = 0

    @classmethod
    def open(cls, path: Path, info: TokenFileInfo) -> "TokenStream":
        """Return the ids of the token file `path` with the sidecar `info`; raises the errors of `TokenStream`."""
        sizes = [shard.num_tokens for shard in info.shards] or [info.num_tokens]
        return cls(list(zip(shard_paths(path, info), sizes, strict=True)), info.dtype)

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        """Return a copy of the ids of a slice, with the bounds of any Python sequence; the step must be 1.

        Raises `DataError` if a file was replaced since the stream was opened.
        """
        begin, end, step = part.indices(len(self))
        assert step == 1, "a stream is read without gaps"
        pieces = [np.empty(0, dtype=self.dtype)]
        while begin < end:
            number = bisect_right(self._begins, begin) - 1  # skips empty files that begin here
            last = min(end, self._begins[number + 1])
            pieces.append(self._read(number, begin - self._begins[number], last - begin))
            begin = last
        return np.concatenate(pieces)

    def _read(self, number: int, begin: int, num_ids: int) -> npt.NDArray[Any]:
        """Return a view of ids of a file, which the caller must copy at once."""
        if self._read_bytes > RESIDENT_BYTES:
            self._release_pages()
        self._read_bytes += num_ids * self.dtype.itemsize + _BYTES_AROUND
        return np.frombuffer(self._map(number), self.dtype, count=num_ids, offset=begin * self.dtype.itemsize)

    def _map(self, number: int) -> mmap.mmap:
        mapped = self._maps.pop(number, None)
        if mapped is None:
            if len(self._maps) >= MAX_MAPPED:
                del self._maps[next(iter(self._maps))]  # unmaps the least recently used
            mapped = _mapped(self._paths[number], self._versions[number])
        self._maps[number] = mapped  # the most recently used
        return mapped

    def _release_pages(self) -> None:
        """Release the mapped pages from this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
        else:
            self._maps.clear()  # mapped again on the next read
        self._read_bytes = 0


def _version(path: Path, num_bytes: int) -> _Version:
    try:
        version = _Version.of(path.stat())
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; make the data again with {MAKE_DATA}") from None
    if version.num_bytes != num_bytes:
        raise DataError(
            f"{path}: has {version.num_bytes} bytes where its sidecar promises {num_bytes}; "
            f"make it again with {MAKE_DATA}"
        )
    return version


def _mapped(path: Path, version: _Version) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if _Version.of(os.fstat(file.fileno())) == version:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        pass
    raise DataError(f"{path}: was removed or replaced while it was being read; start again")
