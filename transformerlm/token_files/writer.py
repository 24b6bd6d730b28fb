"""Write token files: shards of ids, each with an index of its documents."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from transformerlm.token_files.index import Shard, documents_path, little_endian
from transformerlm.utils.files import atomic_write


@final
class ShardWriter:
    """Writes the ids of a shard, and the index of its documents."""

    def __init__(self, ids: Any, documents: Any, dtype: str, hasher: Executor) -> None:
        """`ids` and `documents` are open files; `hasher` has a thread that hashes the data written to them."""
        self._hasher = hasher
        self._files = {ids: hashlib.sha256(), documents: hashlib.sha256()}
        self._ids, self._documents = ids, documents
        self._dtype = little_endian(dtype)
        self.num_tokens = self.num_documents = self.max_token_id = 0

    def write(self, ids: npt.NDArray[np.integer], begins: npt.NDArray[np.integer]) -> None:
        """Append `ids`; documents begin at the positions `begins` in this array."""
        self._append(self._ids, ids.astype(self._dtype, copy=False))
        self._append(self._documents, begins.astype("<u8") + np.uint64(self.num_tokens))
        self.num_tokens += ids.size
        self.num_documents += begins.size
        self.max_token_id = max(self.max_token_id, int(ids.max(initial=0)))

    def _append(self, file: Any, values: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).data.cast("B") if values.size else b""
        hashed = self._hasher.submit(self._files[file].update, data)  # concurrently with the write below
        file.write(data)
        hashed.result()

    def describe(self, name: str) -> Shard:
        """Return the shard's entry in a sidecar, under the file name `name`."""
        return Shard(
            name=name,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            sha256=self._files[self._ids].hexdigest(),
            documents_sha256=self._files[self._documents].hexdigest(),
        )


@contextlib.contextmanager
def write_shard_files(path: Path, dtype: str) -> Iterator[ShardWriter]:
    """Open `path` and its index of documents for writing; on an exception neither of them is changed.

    Their data are flushed to disk before they get their names. The folder is not; the caller flushes it if the names
    must survive a crash.
    """
    with (
        ThreadPoolExecutor(1) as hasher,
        atomic_write(documents_path(path), durable=False) as documents,
        atomic_write(path, durable=False) as ids,
    ):
        yield ShardWriter(ids, documents, dtype, hasher)
        for file in (documents, ids):
            file.flush()
            os.fsync(file.fileno())
