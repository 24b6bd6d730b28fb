"""Text files as a stream of text, compressed or not, in memory that does not depend on their size."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from transformerlm.utils.errors import DataError, TokenizerError

READ_BYTES = 1 << 18


def read_text(path: Path | str, on_read: Callable[[int], None] | None = None) -> Iterator[str]:
    r"""Yield the text of a UTF-8 file part by part, line ends untouched (`\r\n` survives).

    A name that ends in `.gz` or `.zst` is decompressed. `on_read` is told how many bytes of the file (as it
    lies on disk) have been read so far.

    Raises `DataError` if the file cannot be read or is damaged, and `TokenizerError` with the byte offset
    (after decompression) if it is not UTF-8.
    """
    path = Path(path)
    offset, rest = 0, b""
    for chunk, bytes_read in _chunks(path):
        if on_read:
            on_read(bytes_read)
        data = rest + chunk
        text, used = _decode_utf8(path, data, offset, final=False)
        offset, rest = offset + used, data[used:]
        if text:
            yield text
    _decode_utf8(path, rest, offset, final=True)  # raises if the file ends inside a character


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the decompressed bytes, and how far the file has been read."""
    try:
        with path.open("rb") as file:
            for chunk in _zstd_chunks(file) if path.suffix == ".zst" else _plain_or_gzip_chunks(path, file):
                yield chunk, file.tell()
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged compressed file ({error}); make or fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error


def _plain_or_gzip_chunks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    source = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    while chunk := source.read(READ_BYTES):
        yield chunk


def _zstd_chunks(file: IO[bytes]) -> Iterator[bytes]:
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


def _decode_utf8(path: Path, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {offset + error.start} ({error.reason}); convert the file to UTF-8"
        ) from error
