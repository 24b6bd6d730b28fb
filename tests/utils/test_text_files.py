"""Text files as they lie on disk or elsewhere, compressed or damaged."""

import bz2
import gzip
import io
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from transformerlm.utils import text_files as corpus
from transformerlm.utils.errors import DataError, MissingDependencyError, TokenizerError
from transformerlm.utils.text_files import read_bytes, read_range, read_text, reads_ranges, stored_size

TEXT = "one\ufeff\r\ntwo\rthree\n\x00 é你😀 " * 500


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "READ_BYTES", 16 * 7)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", TEXT.encode()),
        ("a.txt.gz", gzip.compress(TEXT.encode())),
        ("two_members.gz", gzip.compress(TEXT[:50].encode()) + gzip.compress(TEXT[50:].encode())),
        ("a.txt.zst", zstandard.compress(TEXT.encode())),
        ("a.txt.xz", lzma.compress(TEXT.encode())),
        ("two_streams.xz", lzma.compress(TEXT[:50].encode()) + lzma.compress(TEXT[50:].encode())),
        ("two_frames.zst", zstandard.compress(TEXT[:50].encode()) + zstandard.compress(TEXT[50:].encode())),
    ],
)
def test_every_character_survives(tmp_path: Path, name: str, data: bytes) -> None:
    seen: list[int] = []
    assert "".join(read_text(write(tmp_path / name, data), seen.append)) == TEXT
    assert seen == sorted(seen)
    assert seen[-1] == len(data)
    assert stored_size(tmp_path / name) == len(data)


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip
PADDING = {".gz": 1, ".xz": 4}
DATA = Path(__file__).parent / "data"


def written(where: str, folder: Path, name: str, data: bytes) -> Path | str:
    """Write a file to the disk, or to where fsspec streams it from."""
    if where == "disk":
        return write(folder / name, data)
    fsspec.filesystem("memory").pipe(f"/packed/{name}", data)
    return f"memory://packed/{name}"


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_is_read_to_its_end_or_is_damaged(tmp_path: Path, suffix: str, where: str) -> None:
    def read(data: bytes, name: str = "a.txt") -> bytes:
        return b"".join(read_bytes(written(where, tmp_path, name + suffix, data)))

    members = [PACK[suffix](text) for text in (b"one ", b"", b"two " * 200, b"three")]
    whole = b"one " + b"two " * 200 + b"three"
    assert read(b"".join(members)) == whole
    for size in range(1, 13):
        is_legal = suffix in PADDING and size % PADDING[suffix] == 0
        for at in range(1, len(members) + 1):
            padded = b"".join(members[:at]) + bytes(size) + b"".join(members[at:])
            if is_legal:
                assert read(padded) == whole
            else:
                with pytest.raises(DataError, match="damaged compressed file"):
                    read(padded)
    for garbage in (b"x", b"garbage after the end", members[0][:3], b"\0\0\0\0x", members[0][:-1] + b"\xff"):
        with pytest.raises(DataError, match="damaged compressed file"):
            read(b"".join(members) + garbage)
    flipped = bytes([members[2][0] ^ 1]) + members[2][1:]  # in the magic of a later member
    with pytest.raises(DataError, match="damaged compressed file"):
        read(members[0] + flipped + members[3])


@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_file_that_is_cut_off_anywhere_is_damaged(tmp_path: Path, suffix: str) -> None:
    first, second = PACK[suffix](TEXT[:300].encode()), PACK[suffix](b"more text")
    for size in range(1, len(first + second)):
        path = write(tmp_path / f"a.txt{suffix}", (first + second)[:size])
        if size == len(first):  # between two members: a file of one
            assert b"".join(read_bytes(path)) == TEXT[:300].encode()
        else:
            with pytest.raises(DataError, match="damaged compressed file"):
                list(read_bytes(path))


def test_xz_files_with_padding_are_read_whole() -> None:
    def documents(name: str) -> int:
        return b"".join(read_bytes(DATA / name)).count(b"<|endoftext|>")

    good = documents("xz_two_streams_good.txt.xz")
    assert documents("xz_legal_stream_padding.txt.xz") == good > documents("xz_padding_at_end.txt.xz") > 0
    with pytest.raises(DataError, match="damaged compressed file"):
        documents("xz_second_stream_magic_flipped.txt.xz")


def test_a_frame_to_be_skipped_is_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    path = write(tmp_path / "a.zst", skipped + zstandard.compress(b"one") + skipped)
    assert b"".join(read_bytes(path)) == b"one"


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.txt.gz", "A.TXT.GZ", "a.txt.zst"])
@pytest.mark.parametrize("suffix", PACK)
def test_the_content_says_how_it_is_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    assert "".join(read_text(write(tmp_path / name, PACK[suffix](TEXT.encode())))) == TEXT


def _archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "x" * 5000)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = 5000
            archive.addfile(member, io.BytesIO(b"x" * 5000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_archive("tar"), r"is an archive \(tar\): unpack it, or name its members as tar://\*\.txt::PATH"),
        (_archive("zip"), r"is an archive \(zip, .* as zip://"),
        ("one two".encode("utf-16"), r"is UTF-16: convert it"),
        ("one two".encode("utf-16-be"), r"looks like UTF-16 without a byte-order mark: convert it"),
        ("one two".encode("utf-32"), r"is UTF-32: convert it"),
        (b"\x89PNG\r\n\x1a\n and so on", "is a binary file: leave it out"),
        (b"%PDF-1.7\n", "is a document, not plain text"),
        (b"PAR1\x15\x04", "is a Parquet file: set input.format = parquet"),
        (bytes(range(256)) * 4, "is a binary file: many of its first bytes"),
    ],
    ids=["tar", "zip", "utf16", "utf16be", "utf32", "png", "pdf", "parquet", "binary"],
)
@pytest.mark.parametrize("suffix", ["", *PACK])
def test_what_is_no_text_is_refused_with_advice(tmp_path: Path, data: bytes, message: str, suffix: str) -> None:
    packed = PACK[suffix](data) if suffix else data
    with pytest.raises(DataError, match=rf"a\.txt: {message}"):
        list(read_bytes(write(tmp_path / "a.txt", packed)))
    with pytest.raises(DataError, match=message):
        list(read_text(written("memory", tmp_path, f"a.txt{suffix}", packed)))


def test_the_members_of_an_archive_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.tar.gz", gzip.compress(_archive("tar")))
    assert "".join(read_text(f"tar://a.txt::file://{tmp_path}/a.tar.gz")) == "x" * 5000


@pytest.mark.parametrize("text", ["a\0", "\0\0\0", "\x1b[1mbold\x1b[0m" * 20, "tab\tline\n\f" * 20, "你好" * 300, TEXT])
def test_odd_texts_are_texts(tmp_path: Path, text: str) -> None:
    assert "".join(read_text(write(tmp_path / "a.txt", text.encode()))) == text


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, suffix: str) -> None:
    data = "\ufeffone\ufeff two".encode()
    path = write(tmp_path / "a.txt", PACK[suffix](data) if suffix else data)
    assert "".join(read_text(path)) == b"".join(read_bytes(path)).decode() == "one\ufeff two"
    assert b"".join(read_bytes(path, keep_mark=True)) == data
    if not suffix:
        assert b"".join(read_bytes(path, begin=3)) == data[3:]
    write(path, data + b"\xff")
    with pytest.raises(TokenizerError, match=rf"not UTF-8 at byte {len(data)} "):
        list(read_text(path))


def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[gzip.compress(TEXT.encode())])
    writer.start()
    assert "".join(read_text(tmp_path / "pipe")) == TEXT
    writer.join()


def test_any_exception_of_a_package_that_reads_urls_is_an_error_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As a client for the network has it, whatever its package is called."""

    def fail(error: Exception) -> Callable[..., Any]:
        def info(*_arguments: Any) -> Any:
            raise error

        return info

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", fail(ConnectError("no route")))
    with pytest.raises(DataError, match=r"memory://a: cannot be read \(no route\); try again"):
        stored_size("memory://a")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", fail(KeyError("a bug")))
    with pytest.raises(KeyError):
        stored_size("memory://a")


@pytest.mark.parametrize("name", ["empty.txt", "empty.gz", "empty.zst"])
def test_an_empty_file_has_no_text(tmp_path: Path, name: str) -> None:
    assert list(read_text(write(tmp_path / name, b""))) == []


@pytest.mark.parametrize(
    ("data", "offset"), [(b"x" * 500 + b"\xff", 500), ("é".encode() * 300 + b"\xe4\xbd", 600), (b"\x80", 0)]
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_what_is_not_utf8_is_named_with_its_place(tmp_path: Path, data: bytes, offset: int, suffix: str) -> None:
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    path = write(tmp_path / f"bad.txt{suffix}", packed)
    with pytest.raises(TokenizerError, match=rf"bad\.txt.*not UTF-8 at byte {offset} "):
        list(read_text(path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.gz", gzip.compress(TEXT.encode())[:-20]),
        ("cut.zst", zstandard.compress(TEXT.encode())[:-5]),
        ("cut.xz", lzma.compress(TEXT.encode())[:-20]),
        ("wrong.xz", b"not compressed at all"),
        ("head.zst", zstandard.compress(TEXT.encode())[:3]),
        ("wrong.zst", b"not compressed at all"),
        ("wrong.gz", b"not compressed at all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=name):
        list(read_text(write(tmp_path / name, data)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read \(No such file"):
        list(read_text(tmp_path / "nowhere.txt"))
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read \(No such file"):
        stored_size(tmp_path / "nowhere.txt")


def test_bytes_need_not_be_utf8(tmp_path: Path) -> None:
    assert b"".join(read_bytes(write(tmp_path / "a.txt", b"x\xff" * 100))) == b"x\xff" * 100


@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.gz", gzip.compress), ("a.zst", zstandard.compress)])
def test_text_comes_from_wherever_fsspec_reaches(name: str, pack: Callable[[bytes], bytes]) -> None:
    url = f"memory://corpus/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(pack(TEXT.encode()))  # pyright: ignore
    seen: list[int] = []
    assert "".join(read_text(url, seen.append)) == TEXT
    assert seen[-1] == stored_size(url) == len(pack(TEXT.encode()))


def test_a_url_may_be_a_chain(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside.txt.gz", gzip.compress(TEXT.encode()))
    assert "".join(read_text(f"zip://inside.txt.gz::file://{tmp_path}/a.zip")) == TEXT


def test_urls_that_cannot_be_read_are_named() -> None:
    for read in (stored_size, lambda url: list(read_text(url))):
        with pytest.raises(DataError, match="memory://corpus/nowhere: cannot be read"):
            read("memory://corpus/nowhere")
        with pytest.raises(DataError, match=r"teleport://a: cannot be read \(Protocol not known"):
            read("teleport://a")


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match=r"s3://bucket/a: Install s3fs"):
        stored_size("s3://bucket/a")


def test_an_error_of_the_callback_is_not_the_files(tmp_path: Path) -> None:
    def fail(_bytes_read: int) -> None:
        raise OSError("the bar broke")

    with pytest.raises(OSError, match="the bar broke"):
        list(read_text(write(tmp_path / "a.txt", b"a"), fail))


@pytest.mark.parametrize("where", ["file", "memory", "web"])
def test_a_file_can_be_read_from_the_middle(tmp_path: Path, serve: Callable[..., Any], where: str) -> None:
    data = TEXT.encode()
    path: Path | str = write(tmp_path / "a.txt", data)
    if where == "memory":
        fsspec.filesystem("memory").pipe("/middle.txt", data)
        path = "memory://middle.txt"
    elif where == "web":
        path = f"{serve(tmp_path).url}/a.txt"
    assert reads_ranges(path)
    seen: list[int] = []
    assert b"".join(read_bytes(path, seen.append, begin=100)) == data[100:]
    assert seen == sorted(seen)
    assert seen[-1] == len(data)
    assert read_range(path, 200, 5000) == data[200:5000]
    assert read_range(path, len(data) - 5, len(data) + 5) == data[-5:]


def test_not_every_file_has_a_middle(tmp_path: Path, serve: Callable[..., Any]) -> None:
    write(tmp_path / "a.txt", TEXT.encode())
    assert not reads_ranges(write(tmp_path / "a.gz", gzip.compress(TEXT.encode())))
    assert not reads_ranges(write(tmp_path / "packed.txt", gzip.compress(TEXT.encode())))
    assert not reads_ranges(f"{serve(tmp_path).url}/packed.txt")
    assert not reads_ranges(f"{serve(tmp_path, ranges=False).url}/a.txt")


def test_little_that_expands_to_much_comes_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zst", zstandard.compress(b"x" * (1 << 28)))
    assert path.stat().st_size < 1 << 14
    assert max(map(len, read_bytes(path))) < 1 << 22
