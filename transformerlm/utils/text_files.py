"""Stream text from a local file or a URL, compressed or not, in bounded memory.

A source is a local file or, if its name contains `://`, a file that fsspec can read:

    stories.txt   pile/part-*.jsonl.zst (one by one)   s3://bucket/text.gz   hf://datasets/…   memory://notes.txt

    name ──▶ stored bytes ──decompression──▶ bytes of the text ──read_text──▶ text

The format is recognised by the first bytes of a file, not by its name; see `file_content`.
"""

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeAlias

from transformerlm.utils.errors import DataError, MissingDependencyError, TokenizerError, TransformerLMError
from transformerlm.utils.file_content import HEAD_BYTES, DamagedError, check_text, compression_of, decompress

READ_BYTES = 1 << 20

STALLED_SECONDS = 60
"""Timeout for a server that sends nothing."""

TextPath: TypeAlias = str | os.PathLike[str]
"""A path, or a URL of fsspec as a `str`."""

OnRead: TypeAlias = Callable[[int], None]
"""Called with the number of stored bytes of a file that have been read so far."""


def read_text(path: TextPath, on_read: OnRead | None = None) -> Iterator[str]:
    r"""Yield the text of a UTF-8 file in parts, without a byte-order mark; line ends are not converted (`\r\n` stays).

    Files compressed by gzip, bzip2, xz or zstd are decompressed.

    Raises `DataError` if the file cannot be read, is damaged, or is not text (an archive, an image, UTF-16, …),
    `MissingDependencyError` if fsspec needs another package for the URL, and `TokenizerError` with the byte offset
    (after decompression) if it is not UTF-8.
    """
    offset, rest = 0, b""
    for part in read_bytes(path, on_read, keep_mark=True):  # so that offsets in errors count from the file's start
        data = rest + part
        text, used = _decode_utf8(path, data, offset, final=False)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset, rest = offset + used, data[used:]
        if text:
            yield text
    _decode_utf8(path, rest, offset, final=True)  # raises if the file ends inside a character


def read_bytes(
    path: TextPath, on_read: OnRead | None = None, *, begin: int = 0, keep_mark: bool = False
) -> Iterator[bytes]:
    """Yield the bytes of a file in parts, from byte `begin` on; like `read_text`, but the bytes need not be UTF-8.

    A `begin` above 0 needs a file that is not compressed, on a server that supports ranges (see `reads_ranges`). A
    byte-order mark at the start is dropped unless `keep_mark`.
    """
    drops_mark = not begin and not keep_mark
    for part, bytes_read in _parts(path, begin):
        if on_read:
            on_read(bytes_read)
        if drops_mark and part:  # the first part contains the whole mark
            part, drops_mark = part.removeprefix(codecs.BOM_UTF8), False
        if part:
            yield part


def read_range(path: TextPath, begin: int, end: int) -> bytes:
    """Return the stored bytes of a file from `begin` up to `end`."""
    found = b""
    with clear_errors(path), _open(path, begin) as file:
        while len(found) < end - begin and (part := file.read(end - begin - len(found))):
            found += part
    return found


def stored_size(path: TextPath) -> int:
    """Return the stored size of a file in bytes; 0 if the server does not report it.

    Raises the errors of `read_text`, so that a wrong name is found before any work is done.
    """
    if is_url(path):
        return remote_info(os.fspath(path)).get("size") or 0
    with clear_errors(path):
        return Path(path).stat().st_size


def remote_info(url: str) -> dict[str, Any]:
    """Return fsspec's information about a file: `size`, which may be None, and more that depends on the server."""
    with clear_errors(url):
        from fsspec.core import url_to_fs  # imported where it is needed: most runs read local files

        file_system, name = url_to_fs(url)
        return file_system.info(name)


def reads_ranges(path: TextPath) -> bool:
    """Return whether `read_bytes` can begin inside a file: it is not compressed, and its server supports ranges."""
    with clear_errors(path):
        if _is_http(path):
            with _open_http(os.fspath(path), {"Range": f"bytes=0-{HEAD_BYTES - 1}"}) as file:
                return file.r.status == 206 and compression_of(os.fspath(path), _head(file)) is None
        with _open(path, 0) as file:
            return compression_of(os.fspath(path), _head(file)) is None


@contextmanager
def opened(path: TextPath) -> Iterator[IO[bytes]]:
    """Open the stored bytes of a file for reading, with seeking."""
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


def _parts(path: TextPath, begin: int) -> Iterator[tuple[bytes, int]]:
    """Yield decompressed bytes, each part with the number of stored bytes read so far."""
    place = begin

    def stored(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
        nonlocal place
        block = head
        while block:
            place += len(block)
            yield block
            block = file.read(READ_BYTES)

    with clear_errors(path), _open(path, begin) as file:
        name = os.fspath(path)
        parts: Iterable[bytes]
        if begin:
            parts = stored(file.read(READ_BYTES), file)
        else:
            head = _head(file)
            compression = compression_of(name, head)
            parts = stored(head, file) if compression is None else decompress(stored(head, file), compression)
            parts = _checked(name, parts)
        told = begin
        for part in parts:
            told = place
            yield part, told
        if place > told:  # checksums, empty frames
            yield b"", place


def _checked(name: str, parts: Iterable[bytes]) -> Iterator[bytes]:
    """Return `parts` unchanged, after checking the first bytes. Raises `DataError` if they are not text."""
    parts = iter(parts)
    head = b""
    for part in parts:
        head += part
        if len(head) >= HEAD_BYTES:
            break
    check_text(name, head)
    return chain([head] if head else [], parts)


def _head(file: IO[bytes]) -> bytes:
    """Return the first bytes of a file, `HEAD_BYTES` unless it has fewer."""
    head = b""
    while len(head) < HEAD_BYTES and (part := file.read(HEAD_BYTES - len(head))):
        head += part
    return head


@contextmanager
def _open(path: TextPath, begin: int) -> Iterator[IO[bytes]]:
    """Open a file for a single sequential read from `begin` on."""
    if _is_http(path):
        # One streamed response, not one request per block: servers limit requests.
        with _open_http(os.fspath(path), {"Range": f"bytes={begin}-"} if begin else {}) as file:
            if begin and file.r.status != 206:
                raise OSError(f"the server ignored the request for a range from byte {begin}, and sent the whole file")
            yield file
        return
    with opened(path) as file:
        if begin:
            file.seek(begin)  # only if needed: a pipe cannot seek
        yield file


def _is_http(path: TextPath) -> bool:
    return os.fspath(path).startswith(("http://", "https://")) and "::" not in os.fspath(path)


def _open_http(url: str, headers: dict[str, str]) -> closing[Any]:
    """Return the open response to a request for `url`: fsspec's stream, with aiohttp's response as `r`."""
    import fsspec

    file_system = fsspec.filesystem(url.partition(":")[0])  # raises ImportError without aiohttp
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_SECONDS, sock_read=STALLED_SECONDS)
    # A given size saves a request; a block size of 0 asks for a stream.
    return closing(
        file_system.open(url, block_size=0, size=1, headers=headers, timeout=timeout, read_bufsize=READ_BYTES)
    )


@contextmanager
def clear_errors(path: TextPath) -> Iterator[None]:
    """Turn the exceptions of file systems and decompressors into this project's errors."""
    try:
        yield
    except TransformerLMError:
        raise
    except DamagedError as error:
        raise DataError(f"{path}: damaged compressed file ({error}); make it or download it again") from error
    except ImportError as error:
        raise MissingDependencyError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); check the file") from error
    except ValueError as error:  # an unknown protocol, a byte 0 in a name
        raise DataError(f"{path}: cannot be read ({error}); check the name") from error
    except Exception as error:
        # Network packages raise exceptions of their own; a built-in exception such as KeyError is a bug.
        if not is_url(path) or type(error).__module__ == "builtins":
            raise
        raise DataError(f"{path}: cannot be read ({_reason(error)}); try again") from error


def _reason(error: Exception) -> str:
    """Return the message of a system or network error in one line; fsspec keeps a server's response as the cause."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return " ".join((strerror or str(error.__cause__ or "") or str(error) or type(error).__name__).split())


def _decode_utf8(path: TextPath, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: not UTF-8 at byte {offset + error.start} ({error.reason}); convert the file to UTF-8"
        ) from error
