"""Text from wherever it lies, compressed or not, as a stream in memory that does not depend on its size.

A source is a file on this machine or, if its name has a `://` in it, anywhere that fsspec reaches:

    stories.txt   pile/part-*.jsonl.zst (one by one)   s3://bucket/text.gz   hf://datasets/…   memory://notes.txt

    name ──▶ bytes as they lie there ──.gz .zst .xz──▶ bytes of the text ──read_text──▶ text
"""

import codecs
import gzip
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import zstandard

from transformerlm.utils.errors import DataError, MissingDependencyError, TokenizerError, TransformerLMError

READ_BYTES = 1 << 20

COMPRESSED_SUFFIXES = (".gz", ".xz", ".zst")

_ZSTD_STEPS = range(1 << 6, 1 << 12)
"""Compressed bytes that are unpacked at a time, from and to: 64 may become a megabyte."""

STALLED_SECONDS = 60
"""A server that sends nothing for this long is given up."""

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


def read_bytes(path: TextPath, on_read: OnRead | None = None, *, begin: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file part by part, as `read_text` does but for the last error.

    With `begin`, they are those from that byte on; the file must not be compressed, and what holds it must be able to
    read from the middle (see `reads_ranges`).
    """
    assert not begin or not is_compressed(path), "the middle of a compressed file says nothing by itself"
    for part, bytes_read in _parts(path, begin):
        if on_read:
            on_read(bytes_read)
        if part:
            yield part


def read_range(path: TextPath, begin: int, end: int) -> bytes:
    """Return the bytes of a file from `begin` up to `end`, as `read_bytes` has them."""
    found = b""
    with clear_errors(path), _open(path, begin) as file:
        while len(found) < end - begin and (part := file.read(end - begin - len(found))):
            found += part
    return found


def stored_size(path: TextPath) -> int:
    """Return the size of a file as it lies there, in bytes; 0 if the other side does not tell.

    Raises the errors of `read_text`, so that a wrong name is found before any work is done.
    """
    if is_url(path):
        return remote_info(os.fspath(path)).get("size") or 0
    with clear_errors(path):
        return Path(path).stat().st_size


def remote_info(url: str) -> dict[str, Any]:
    """Return what fsspec knows of a file: `size`, which may be None, and more that depends on where it is."""
    with clear_errors(url):
        from fsspec.core import url_to_fs  # imported here, as everywhere: most never need it

        file_system, name = url_to_fs(url)
        return file_system.info(name)


def reads_ranges(path: TextPath) -> bool:
    """Return whether `read_bytes` can begin in the middle of a file; of a server, ask it for the second byte."""
    if is_compressed(path):
        return False
    if not _is_http(path):
        return True
    with clear_errors(path), _open_http(os.fspath(path), {"Range": "bytes=1-1"}) as file:
        return file.r.status == 206


@contextmanager
def opened(path: TextPath) -> Iterator[IO[bytes]]:
    """Open the bytes of a file as they lie there, to be read from any place."""
    with ExitStack() as stack:
        with clear_errors(path):
            if is_url(path):
                import fsspec

                manager: Any = fsspec.open(os.fspath(path), "rb")
            else:
                manager = Path(path).open("rb")  # noqa: SIM115 (entered below)
            file = stack.enter_context(manager)
        yield file


def is_url(path: TextPath) -> bool:
    """Return whether fsspec reads `path`."""
    return "://" in os.fspath(path)


def is_compressed(path: TextPath) -> bool:
    """Return whether a file's name says that it is compressed."""
    return _suffix(path) in COMPRESSED_SUFFIXES


def _parts(path: TextPath, begin: int) -> Iterator[tuple[bytes, int]]:
    """Yield the decompressed bytes, and how far the file has been read."""
    with clear_errors(path), _open(path, begin) as file:
        before = begin if _is_http(path) else 0  # a stream counts what it has brought
        place = 0
        for part in _decompressed(file, _suffix(path)):
            place = file.tell()
            yield part, before + place
        if file.tell() > place:  # checksums, empty frames
            yield b"", before + file.tell()


def _suffix(path: TextPath) -> str:
    # A URL may be a chain ("zip://a.gz::https://…"), and may carry a query.
    name = os.fspath(path).partition("::")[0].partition("?")[0] if is_url(path) else os.fspath(path)
    return PurePosixPath(name).suffix


@contextmanager
def _open(path: TextPath, begin: int) -> Iterator[IO[bytes]]:
    """Open a file to be read from `begin` on, once."""
    if _is_http(path):
        # One answer, as long as it takes, and not one a block: servers count requests.
        with _open_http(os.fspath(path), {"Range": f"bytes={begin}-"} if begin else {}) as file:
            if begin and file.r.status != 206:
                raise OSError(f"the server sent it whole though asked for what follows byte {begin}")
            yield file
        return
    with opened(path) as file:
        file.seek(begin)
        yield file


def _is_http(path: TextPath) -> bool:
    return os.fspath(path).startswith(("http://", "https://")) and "::" not in os.fspath(path)


def _open_http(url: str, headers: dict[str, str]) -> closing[Any]:
    """Return an open answer to a request for `url`: fsspec's stream, with aiohttp's response as `r`."""
    import fsspec

    file_system = fsspec.filesystem(url.partition(":")[0])  # raises ImportError without aiohttp
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_SECONDS, sock_read=STALLED_SECONDS)
    # A size given here spares a request; a block size of 0 asks for a stream.
    return closing(
        file_system.open(url, block_size=0, size=1, headers=headers, timeout=timeout, read_bufsize=READ_BYTES)
    )


@contextmanager
def clear_errors(path: TextPath) -> Iterator[None]:
    """Turn what a file's readers raise into the errors of this project."""
    try:
        yield
    except TransformerLMError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged compressed file ({error}); make or fetch it again") from error
    except ImportError as error:
        raise MissingDependencyError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); check the file") from error
    except ValueError as error:  # an unknown protocol, a byte 0 in a name
        raise DataError(f"{path}: cannot be read ({error}); check the name") from error
    except _network_errors() as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); try again") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what packages for the network raise beside `OSError`, if they are in use."""
    names = (("aiohttp", "ClientError"), ("httpx", "HTTPError"))
    return tuple(getattr(sys.modules[package], name) for package, name in names if package in sys.modules)


def _reason(error: Exception) -> str:
    """Return in a line what an error of the system or the network says; fsspec has a server's answer as the cause."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return " ".join((strerror or str(error.__cause__ or "") or str(error) or type(error).__name__).split())


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
    step = _ZSTD_STEPS.start
    while stored := file.read(READ_BYTES):
        begin = 0
        while begin < len(stored):
            compressed = stored[begin : begin + step]
            begin += step
            size = 0
            while compressed:
                started = True
                part = decompressor.decompress(compressed)
                size += len(part)
                yield part
                compressed = decompressor.unused_data
                if decompressor.eof:  # a file may hold several frames
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
                    started = False
            step = min(2 * step, _ZSTD_STEPS.stop) if size <= READ_BYTES else _ZSTD_STEPS.start
    if started:
        raise EOFError("it ends inside a frame")


def _decode_utf8(path: TextPath, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {offset + error.start} ({error.reason}); convert the file to UTF-8"
        ) from error
