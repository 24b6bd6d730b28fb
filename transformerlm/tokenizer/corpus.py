"""Text from wherever it lies, compressed or not, as a stream in memory that does not depend on its size.

A source is a file on this machine or, if its name has a `://` in it, anywhere that fsspec reaches:

    stories.txt   pile/part-*.jsonl.zst (one by one)   s3://bucket/text.gz   hf://datasets/…   memory://notes.txt

    name ──▶ bytes as they lie there ──.gz .zst .xz──▶ bytes of the text ──read_text──▶ text
"""

import codecs
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

import zstandard

from transformerlm.utils.errors import DataError, MissingDependencyError, TokenizerError

READ_BYTES = 1 << 18

TextPath: TypeAlias = str | os.PathLike[str]
"""A path, or a URL of fsspec as a `str`."""

OnRead: TypeAlias = Callable[[int], None]
"""Told how many bytes of a file, as it lies there, have been read so far."""


def read_text(path: TextPath, on_read: OnRead | None = None) -> Iterator[str]:
    r"""Yield the text of a UTF-8 file part by part, line ends untouched (`\r\n` survives).

    A name that ends in `.gz`, `.zst` or `.xz` is decompressed.

    Raises `DataError` if the file cannot be read or is damaged, `MissingDependencyError` if fsspec needs another
    package for the URL, and `TokenizerError` with the byte offset (after decompression) if it is not UTF-8.
    """
    offset, rest = 0, b""
    for part in read_bytes(path, on_read):
        data = rest + part
        text, used = _decode_utf8(path, data, offset, final=False)
        offset, rest = offset + used, data[used:]
        if text:
            yield text
    _decode_utf8(path, rest, offset, final=True)  # raises if the file ends inside a character


def read_bytes(path: TextPath, on_read: OnRead | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file part by part, as `read_text` does but for the last error."""
    for part, bytes_read in _parts(path):
        if on_read:
            on_read(bytes_read)
        yield part


def stored_size(path: TextPath) -> int:
    """Return the size of a file as it lies there, in bytes; 0 if the other side does not tell.

    Raises the errors of `read_text`, so that a wrong name is found before any work is done.
    """
    with _clear_errors(path):
        if not is_url(path):
            return Path(path).stat().st_size
        from fsspec.core import url_to_fs

        file_system, name = url_to_fs(os.fspath(path))
        return file_system.size(name) or 0


def _parts(path: TextPath) -> Iterator[tuple[bytes, int]]:
    """Yield the decompressed bytes, and how far the file has been read."""
    with _clear_errors(path), _open(path) as file:
        for part in _decompressed(file, _suffix(path)):
            yield part, file.tell()


def is_url(path: TextPath) -> bool:
    """Return whether fsspec reads `path`."""
    return "://" in os.fspath(path)


def _suffix(path: TextPath) -> str:
    # A URL may be a chain ("zip://a.gz::https://…"), and may carry a query.
    name = os.fspath(path).partition("::")[0].partition("?")[0] if is_url(path) else os.fspath(path)
    return PurePosixPath(name).suffix


def _open(path: TextPath) -> AbstractContextManager[IO[bytes]]:
    if not is_url(path):
        return Path(path).open("rb")
    import fsspec  # imported here: most never need it

    return fsspec.open(os.fspath(path), "rb")  # pyright: ignore[reportReturnType] (it returns no list for one URL)


@contextmanager
def _clear_errors(path: TextPath) -> Iterator[None]:
    """Turn what a file's readers raise into the errors of this project."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged compressed file ({error}); make or fetch it again") from error
    except ImportError as error:
        raise MissingDependencyError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except ValueError as error:  # an unknown protocol, a byte 0 in a name
        raise DataError(f"{path}: cannot be read ({error}); check the name") from error


def _decompressed(file: IO[bytes], suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        yield from _zstd_parts(file)
        return
    unpack = {".gz": gzip.open, ".xz": lzma.open}.get(suffix)
    source = unpack(file, "rb") if unpack else file
    while part := source.read(READ_BYTES):
        yield part


def _zstd_parts(file: IO[bytes]) -> Iterator[bytes]:
    # Not zstandard's stream reader: it takes a file that breaks off for one that ends.
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    started = False
    while compressed := file.read(READ_BYTES // 16):
        while compressed:
            started = True
            yield decompressor.decompress(compressed)
            compressed = decompressor.unused_data
            if decompressor.eof:  # a file may hold several frames
                decompressor = zstandard.ZstdDecompressor().decompressobj()
                started = False
    if started:
        raise EOFError("it ends inside a frame")


def _decode_utf8(path: TextPath, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {offset + error.start} ({error.reason}); convert the file to UTF-8"
        ) from error
