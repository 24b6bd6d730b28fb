"""Text files as they lie on disk, compressed or damaged."""

import gzip
from pathlib import Path

import pytest
import zstandard

from transformerlm.tokenizer import corpus
from transformerlm.tokenizer.corpus import read_text
from transformerlm.utils.errors import DataError, TokenizerError

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
        ("two_frames.zst", zstandard.compress(TEXT[:50].encode()) + zstandard.compress(TEXT[50:].encode())),
    ],
)
def test_every_character_survives(tmp_path: Path, name: str, data: bytes) -> None:
    seen: list[int] = []
    assert "".join(read_text(write(tmp_path / name, data), seen.append)) == TEXT
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


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
        ("head.zst", zstandard.compress(TEXT.encode())[:3]),
        ("wrong.zst", b"not compressed at all"),
        ("wrong.gz", b"not compressed at all"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=name):
        list(read_text(write(tmp_path / name, data)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read \(No such file"):
        list(read_text(tmp_path / "nowhere.txt"))
