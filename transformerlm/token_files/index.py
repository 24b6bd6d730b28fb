"""Token files: raw little-endian ids in `X.dat`, described by the sidecar `X.dat.json`.

    one file                          many, each of bounded size: X.dat is only a name
        X.dat            ids              X.00000.dat  X.00001.dat  …       ids: one stream, cut anywhere
        X.dat.documents  where they       X.00000.dat.documents  …          where documents begin in each
        X.dat.json       begin; sidecar   X.dat.json                        sidecar: the index of all

A configuration names either kind as `X.dat`. A `.documents` file lists the first id of each document, counted from the
start of its file, as little-endian uint64. The sidecar is written last: data without one is unfinished, and not read.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from transformerlm.utils.errors import DataError
from transformerlm.utils.files import sha256_file
from transformerlm.utils.json_file import read_json_object

FORMAT_VERSION = 2  # 1 had no shards, documents and text
UINT16_ENTRIES = 65_536
MAX_ENTRIES = 1 << 24
"""Maximum size of a vocabulary, as for a model."""
MAX_SIDECAR_BYTES = 1 << 28
DOCUMENT_BYTES = 8  # size of an entry in a .documents file
MAKE_DATA = "transformerlm-make-data"


class Shard(BaseModel):
    """A file of ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[^/\\\x00]+$")
    """Name of the file, in the folder of the sidecar; its documents are listed in `NAME.documents`."""
    num_tokens: int = Field(ge=0)
    num_documents: int = Field(ge=0)
    """Documents that begin in this file."""
    sha256: str
    documents_sha256: str


class TokenFileInfo(BaseModel):
    """The sidecar of a token file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2]
    dtype: Literal["uint16", "uint32"]
    num_tokens: int = Field(ge=0)
    num_documents: int = Field(ge=0)
    num_text_bytes: int = Field(ge=0)
    """Bytes of the text without separators: the denominator of bits per byte."""
    vocab_size: int = Field(gt=0, le=MAX_ENTRIES)
    max_token_id: int
    end_of_text_id: int | None
    tokenizer_sha256: str
    data_sha256: str
    """SHA-256 of the only file, or of the concatenated hexadecimal digests of several."""
    sources: list[dict[str, Any]]
    """Path and size in bytes of every text file read."""
    split: dict[str, Any]
    """The settings that selected and ordered the documents of this file."""
    shards: tuple[Shard, ...] = ()
    """The files, in order; empty in format 1, where X.dat is the only file."""
    text: dict[str, int] = {}
    """Bytes and documents of the sources that were read, used, and dropped by reason; see `databuilder.pieces`."""

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        if bool(self.shards) != (self.format_version > 1):
            raise ValueError("format 2 needs a list of shards, and format 1 must not have one")
        if any(shard.name in (".", "..") or len(shard.name.encode("utf-8")) > 240 for shard in self.shards):
            raise ValueError("a shard's name is not a valid file name")
        if self.shards and sum(shard.num_tokens for shard in self.shards) != self.num_tokens:
            raise ValueError("num_tokens is not the sum over the shards")
        return self


def sidecar_path(path: Path) -> Path:
    """Return `X.dat.json` for `X.dat`."""
    return path.with_name(path.name + ".json")


def id_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the type of ids on disk: two bytes while every id fits."""
    return "uint16" if vocab_size <= UINT16_ENTRIES else "uint32"


def little_endian(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of ids on disk, independent of this machine's byte order."""
    return np.dtype(dtype).newbyteorder("<")


def documents_path(path: Path) -> Path:
    """Return the file that lists the documents of a file of ids."""
    return path.with_name(path.name + ".documents")


def shard_paths(path: Path, info: TokenFileInfo) -> list[Path]:
    """Return the files of ids of the token file `path`, in order; a single file is `path`, even after renaming."""
    return [path] if len(info.shards) <= 1 else [path.with_name(shard.name) for shard in info.shards]


def read_info(path: Path) -> TokenFileInfo:
    """Return the sidecar of a token file, checked against the sizes of its files.

    Raises `DataError` if a file is missing or does not match the sidecar.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    if not sidecar.exists():
        if path.exists():
            raise DataError(
                f"{path}: is not a token file, or its sidecar {sidecar.name} is missing; make it again with {MAKE_DATA}"
            )
        raise DataError(f"{path}: there is no such token file; make it with {MAKE_DATA}")
    try:
        content = read_json_object(sidecar, max_bytes=MAX_SIDECAR_BYTES, error=DataError)
        info = TokenFileInfo.model_validate(content)
    except (ValueError, ValidationError) as error:  # a DataError is a ValueError
        first = str(error).splitlines()[0]
        raise DataError(
            f"{sidecar}: is not a sidecar of format {FORMAT_VERSION} or older ({first}); "
            f"make the token file again with {MAKE_DATA}"
        ) from None
    for file, num_bytes in _sizes(path, info).items():
        _check_size(file, num_bytes)
    if info.max_token_id >= info.vocab_size:
        raise DataError(f"{sidecar}: largest id {info.max_token_id} is outside its vocabulary of {info.vocab_size}")
    return info


def _sizes(path: Path, info: TokenFileInfo) -> dict[Path, int]:
    """Return the expected size of each file in bytes."""
    width = np.dtype(info.dtype).itemsize
    if not info.shards:
        return {path: info.num_tokens * width}
    sizes = {}
    for file, shard in zip(shard_paths(path, info), info.shards, strict=True):
        sizes[file] = shard.num_tokens * width
        sizes[documents_path(file)] = shard.num_documents * DOCUMENT_BYTES
    return sizes


def _check_size(file: Path, num_bytes: int) -> None:
    if not file.exists():
        raise DataError(f"{file}: is missing; make the token file again with {MAKE_DATA}")
    if file.stat().st_size != num_bytes:
        raise DataError(
            f"{file}: has {file.stat().st_size} bytes where its sidecar promises {num_bytes}; "
            f"make it again with {MAKE_DATA}"
        )


def open_tokens(path: Path, info: TokenFileInfo) -> npt.NDArray[np.integer[Any]]:
    """Return the ids of a single file as a read-only memory map of shape (num_tokens,)."""
    assert len(info.shards) <= 1, "several files are read by `token_stream`"
    if info.num_tokens == 0:
        return np.empty(0, dtype=little_endian(info.dtype))
    return np.memmap(path, dtype=little_endian(info.dtype), mode="r")


def verify_data(path: Path, info: TokenFileInfo) -> None:
    """Raise `DataError` if the SHA-256 of a file differs from the one in the sidecar."""
    if not info.shards:
        _check_digest(path, info.data_sha256)
    for file, shard in zip(shard_paths(path, info), info.shards, strict=False):
        _check_digest(file, shard.sha256)
        _check_digest(documents_path(file), shard.documents_sha256)


def _check_digest(file: Path, digest: str) -> None:
    if sha256_file(file) != digest:
        raise DataError(f"{file}: its content changed since it was made; make it again with {MAKE_DATA}")


def joint_sha256(shards: Sequence[Shard]) -> str:
    """Return the SHA-256 of the ids: the digest of a single file, or of the concatenated digests of several."""
    if len(shards) == 1:
        return shards[0].sha256
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode("ascii")).hexdigest()
