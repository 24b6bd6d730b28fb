"""Token files: raw little-endian ids in `X.dat`, and what they are in the sidecar `X.dat.json`.

    one file                          many, each of bounded size: X.dat is only a name
        X.dat            ids              X.00000.dat  X.00001.dat  …       ids: one stream, cut anywhere
        X.dat.documents  where they       X.00000.dat.documents  …          where documents begin in each
        X.dat.json       begin; sidecar   X.dat.json                        sidecar: the index of all

Either is named `X.dat` in a configuration. Where documents begin: uint64, little-endian, in ids from the file's start.
The sidecar is written last, so data without one is unfinished work and is not read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from transformerlm.utils.errors import DataError
from transformerlm.utils.files import atomic_write, sha256_file, write_json

FORMAT_VERSION = 2  # 1 had no shards, documents and text
UINT16_ENTRIES = 65_536
MAKE_DATA = "transformerlm-make-data"


class Shard(BaseModel):
    """A file of ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the file, which lies beside the sidecar; where documents begin is in `NAME.documents`."""
    num_tokens: int
    num_documents: int
    """Documents that begin in it."""
    sha256: str
    documents_sha256: str


class TokenFileInfo(BaseModel):
    """The sidecar of a token file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2]
    dtype: Literal["uint16", "uint32"]
    num_tokens: int
    num_documents: int
    num_text_bytes: int
    """Bytes of the text without separators: the denominator of bits per byte."""
    vocab_size: int
    max_token_id: int
    end_of_text_id: int | None
    tokenizer_sha256: str
    data_sha256: str
    """Of the file; of several, SHA-256 of their SHA-256 in hexadecimal, one after another."""
    sources: list[dict[str, Any]]
    """Path and size in bytes of every text file read."""
    split: dict[str, Any]
    """How documents were chosen for this file."""
    shards: tuple[Shard, ...] = ()
    """The files, in order; none in format 1, where X.dat is the only one."""
    text: dict[str, int] = {}
    """Bytes and documents of the sources that were read, used, and dropped by reason; see `databuilder.reading`."""


def sidecar_path(path: Path) -> Path:
    """Return `X.dat.json` for `X.dat`."""
    return path.with_name(path.name + ".json")


def id_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the type of ids on disk: two bytes while every id fits."""
    return "uint16" if vocab_size <= UINT16_ENTRIES else "uint32"


def little_endian(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of the ids as they lie on disk, whatever this machine's byte order."""
    return np.dtype(dtype).newbyteorder("<")


class TokenFileWriter:
    """Write documents of ids to a token file: temporary until `finish`, then data and sidecar at once.

    Use as a context manager; leaving it with an exception removes what was written.
    """

    def __init__(self, path: Path, *, vocab_size: int, end_of_text_id: int | None, tokenizer_sha256: str) -> None:
        self.path = path
        self._vocab_size = vocab_size
        self._end_of_text_id = end_of_text_id
        self._tokenizer_sha256 = tokenizer_sha256
        self._dtype: Literal["uint16", "uint32"] = id_dtype(vocab_size)
        self._digest = hashlib.sha256()
        self._open = atomic_write(path)
        self.num_tokens = self.num_documents = self.num_text_bytes = 0
        self._max_token_id = 0

    def __enter__(self) -> "TokenFileWriter":
        self._file = self._open.__enter__()
        return self

    def write(self, ids: npt.ArrayLike, *, num_documents: int, num_text_bytes: int) -> None:
        """Append the ids of whole documents."""
        array = np.asarray(ids, dtype=little_endian(self._dtype))
        data = array.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self.num_tokens += array.size
        self.num_documents += num_documents
        self.num_text_bytes += num_text_bytes
        self._max_token_id = max(self._max_token_id, int(array.max(initial=0)))

    def __exit__(self, *exception: Any) -> None:
        # An old sidecar must never describe the new data: it goes before the data file is replaced.
        if exception[0] is None:
            sidecar_path(self.path).unlink(missing_ok=True)
        self._open.__exit__(*exception)

    def write_sidecar(self, *, sources: list[dict[str, Any]], split: dict[str, Any]) -> TokenFileInfo:
        """Describe the finished data file; call it after the context has closed."""
        info = TokenFileInfo(
            format_version=FORMAT_VERSION,
            dtype=self._dtype,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_text_bytes=self.num_text_bytes,
            vocab_size=self._vocab_size,
            max_token_id=self._max_token_id,
            end_of_text_id=self._end_of_text_id,
            tokenizer_sha256=self._tokenizer_sha256,
            data_sha256=self._digest.hexdigest(),
            sources=sources,
            split=split,
        )
        write_json(sidecar_path(self.path), info.model_dump())
        return info


def read_info(path: Path) -> TokenFileInfo:
    """Return the sidecar of a token file, checked against the file's size.

    Raises `DataError` if either is missing or they do not fit.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such token file; make it with {MAKE_DATA}")
    if not sidecar.exists():
        raise DataError(f"{sidecar}: the sidecar is missing; make the token file again with {MAKE_DATA}")
    try:
        info = TokenFileInfo.model_validate(json.loads(sidecar.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{sidecar}: is not a sidecar of format {FORMAT_VERSION} ({first}); "
            f"make the token file again with {MAKE_DATA}"
        ) from None
    expected = info.num_tokens * np.dtype(info.dtype).itemsize
    if path.stat().st_size != expected:
        raise DataError(
            f"{path}: has {path.stat().st_size} bytes where its sidecar promises {expected}; "
            f"make it again with {MAKE_DATA}"
        )
    if info.max_token_id >= info.vocab_size:
        raise DataError(f"{sidecar}: largest id {info.max_token_id} is outside its vocabulary of {info.vocab_size}")
    return info


def open_tokens(path: Path, info: TokenFileInfo) -> npt.NDArray[np.integer[Any]]:
    """Return the ids as a read-only memory map of shape (num_tokens,)."""
    if info.num_tokens == 0:
        return np.empty(0, dtype=little_endian(info.dtype))
    return np.memmap(path, dtype=little_endian(info.dtype), mode="r")


def verify_data(path: Path, info: TokenFileInfo) -> None:
    """Compare the file's SHA-256 with the sidecar's; raise `DataError` if they differ."""
    if sha256_file(path) != info.data_sha256:
        raise DataError(f"{path}: its content changed since it was made; make it again with {MAKE_DATA}")
