"""Text files as they lie on disk or elsewhere, compressed or damaged."""

import gzip
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from transformerlm.tokenizer import corpus
from transformerlm.tokenizer.corpus import read_bytes, read_range, read_text, reads_ranges, stored_size
from transformerlm.utils.errors import DataError, MissingDependencyError, TokenizerError

TEXT = "\ufeffone\r\ntwo\rthree\n\x00 é你😀 " * 500


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
    assert not reads_ranges(tmp_path / "a.gz")
    assert not reads_ranges(f"{serve(tmp_path, ranges=False).url}/a.txt")


def test_little_that_expands_to_much_comes_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zst", zstandard.compress(b"x" * (1 << 28)))
    assert path.stat().st_size < 1 << 14
    assert max(map(len, read_bytes(path))) < 1 << 22
