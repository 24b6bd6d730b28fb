"""Recognise a file by its first bytes: text, compressed text, or something that is not text.

A compressed file is a sequence of members (gzip's term; streams in bzip2 and xz, frames in zstd), each with its own
header and checksum. All members are read; other bytes than members and legal padding are reported as damage.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import zstandard

from transformerlm.utils.errors import DataError

HEAD_BYTES = 512
"""Bytes of a file that are examined: the signature of a tar archive is at byte 257."""

_STEPS = range(1 << 6, 1 << 12)
"""Range of the compressed bytes per step: 64 bytes of zstd may expand to a megabyte."""
_STEP_OUTPUT = 1 << 20
"""After a step with more output than this, the next step has the minimum size again."""


class DamagedError(Exception):
    """Compressed data are truncated or corrupt."""


class Compression(NamedTuple):
    """A compression format."""

    name: str
    suffix: str
    magic: re.Pattern[bytes]
    new: Callable[[], Any]
    """Makes a decompressor of one member, with `decompress`, `eof` and `unused_data`."""
    padding: int
    """Zero bytes may follow a member if their number is a multiple of this; with 0 none may."""


COMPRESSIONS = (
    Compression("gzip", ".gz", re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(wbits=31), 1),
    Compression("bzip2", ".bz2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor, 0),
    Compression("xz", ".xz", re.compile(rb"\xfd7zXZ\0"), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), 4),
    Compression(
        "zstd",
        ".zst",
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or a skippable frame
        lambda: zstandard.ZstdDecompressor().decompressobj(),  # the stream reader does not detect truncated files
        0,
    ),
)

COMPRESSED_SUFFIXES = tuple(compression.suffix for compression in COMPRESSIONS)

_UNPACK = "an archive ({}): unpack it, or name its members as {}://*.txt::PATH"
_NOT_TEXT = (
    (re.compile(rb".{257}ustar", re.DOTALL), _UNPACK.format("tar", "tar")),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), _UNPACK.format("zip, or a document that is one", "zip")),
    (re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"), "an archive (7z or rar): unpack it"),
    (re.compile(rb"PAR1[^ -~]"), "a Parquet file: set input.format = parquet, or name it .parquet"),
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"), "UTF-32: convert it to UTF-8"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (re.compile(rb"%PDF-|\xd0\xcf\x11\xe0"), "a document, not plain text: export its text first"),
    (
        re.compile(
            rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|\x7fELF|GGUF[^ -~]|SQLite format 3\0|ARROW1\0|\x93NUMPY|\x04\x22\x4d\x18"
        ),
        "a binary file: leave it out",
    ),
)
_CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\b\x1b"})


def is_compressed_name(name: str) -> bool:
    """Return whether a file's name or URL has the suffix of a compressed file."""
    return _suffix(name) in COMPRESSED_SUFFIXES


def compression_of(name: str, head: bytes) -> Compression | None:
    """Return the compression of a file that begins with `head`; None if it is not compressed.

    Raises `DamagedError` if its name has the suffix of a compressed file but its content, if any, is not compressed.
    """
    for compression in COMPRESSIONS:
        if compression.magic.match(head):
            return compression
    if head and is_compressed_name(name):
        raise DamagedError(f"it does not begin like a {_suffix(name)} file")
    return None


def decompress(blocks: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in small parts.

    Raises `DamagedError` if a member is damaged or truncated, or is followed by other bytes.
    """
    member: Any = None  # the decompressor of the current member
    padding = 0
    step = _STEPS.start
    for block in blocks:
        begin = 0
        while begin < len(block):
            data = block[begin : begin + step]
            begin += step
            size = 0
            while data:
                if member is None:
                    rest = data.lstrip(b"\0") if compression.padding else data
                    padding += len(data) - len(rest)
                    data = rest
                    if not data:
                        break
                    _check_padding(padding, compression)
                    member, padding = compression.new(), 0
                part = _decompressed(member, data)
                size += len(part)
                yield part
                data = member.unused_data
                if member.eof:
                    member = None
            step = min(2 * step, _STEPS.stop) if size <= _STEP_OUTPUT else _STEPS.start
    if member is not None:
        raise DamagedError("it is cut off")
    _check_padding(padding, compression)


def check_text(name: str, head: bytes) -> None:
    """Raise `DataError` with advice if a file whose decompressed bytes begin with `head` is not UTF-8 text."""
    for magic, what in _NOT_TEXT:
        if magic.match(head):
            raise DataError(f"{name}: is {what}")
    # In UTF-16, every second byte of Latin text is 0, and almost no other byte is.
    zeros = sorted((head[::2].count(0), head[1::2].count(0)))
    if len(head) >= 8 and zeros[0] == 0 and 4 * zeros[1] > len(head):
        raise DataError(f"{name}: looks like UTF-16 without a byte-order mark: convert it to UTF-8 (iconv -f UTF-16LE)")
    if len(head) >= 64 and 20 * (len(head) - len(head.translate(None, _CONTROL))) > len(head):
        raise DataError(f"{name}: is a binary file: many of its first bytes are control characters; leave it out")


def _check_padding(size: int, compression: Compression) -> None:
    if compression.padding and size % compression.padding:
        raise DamagedError(f"it has {size} zero bytes of padding, which must be a multiple of {compression.padding}")


def _decompressed(member: Any, data: bytes) -> bytes:
    try:
        return member.decompress(data)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:  # OSError: of bz2
        raise DamagedError(str(error)) from error


def _suffix(name: str) -> str:
    # A URL may be a chain ("zip://a.gz::https://…"), and may carry a query.
    if "://" in name:
        name = name.partition("::")[0].partition("?")[0]
    return PurePosixPath(name).suffix.lower()
