"""Files are whole or absent."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from transformerlm.utils.errors import DataError
from transformerlm.utils.files import (
    atomic_write,
    atomic_write_bytes,
    atomic_write_text,
    exclusive,
    require_free_space,
    require_writable,
    sha256_file,
    size_text,
    write_json,
    writing,
)


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.bin"
    with atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_kernel_applies_the_umask_to_all_that_is_written(tmp_path: Path, mask: int) -> None:
    """In a process of its own: the umask belongs to all threads, so a library must never set it, even for a moment."""
    script = f"""
import os, sys
from pathlib import Path
from transformerlm.utils.files import atomic_folder, atomic_path, atomic_write
os.umask({mask})
def refuse(mask): raise AssertionError("the umask was changed")
os.umask = refuse
with atomic_write("file") as file: file.write(b"abc")
with atomic_path(Path("path").absolute(), 3) as path: path.write_bytes(b"abc")
with atomic_folder(Path("folder").absolute(), 3): pass
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file", "path", "folder")}
    assert modes == {"file": 0o666 & ~mask, "path": 0o666 & ~mask, "folder": 0o777 & ~mask}
    assert (tmp_path / "path").read_bytes() == b"abc"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_old_content_is_there_and_nothing_else(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]  # noqa: PTH208 (hidden files too)


def test_line_ends_are_written_as_they_are(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "x", "é\r\n\n")
    assert (tmp_path / "x").read_bytes() == "é\r\n\n".encode()


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, "é"]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": [1, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", math.nan)


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_free_space_is_looked_up_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    asked: list[Path] = []

    def disk_usage(path: Path) -> usage:
        asked.append(path)
        return usage(0, 0, 5_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    require_free_space(tmp_path / "not" / "yet", 5_000_000, "it")
    assert asked == [tmp_path]
    with pytest.raises(DataError, match=r"it needs about 5\.0 MB, the disk has 5\.0 MB free; free some space"):
        require_free_space(tmp_path, 5_000_001, "it")


def test_a_write_that_fails_says_what_it_needed_and_what_there_is(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DataError, match=r"/x: the thing needs 2\.0 MB and cannot be written: No space .* \([\d.,]+ .B free"
        ),
        writing(tmp_path / "x", "the thing", 2_000_000),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(DataError, match=r"the thing needs about .* the disk has"),
        writing(tmp_path, "the thing", 1 << 60),
    ):
        raise AssertionError("it began")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: y needs 3 bytes and cannot be written: (File exists|Not a directory)"):
        atomic_write_bytes(tmp_path / "file/y", b"abc")


def test_sizes_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 99_999, 100_000, 5_000_000_000)] == [
        "0.0 MB",
        "999 bytes",
        "1.0 kB",
        "100.0 kB",
        "0.1 MB",
        "5,000.0 MB",
    ]


def test_a_folder_that_cannot_be_used_is_found_out(tmp_path: Path) -> None:
    require_writable(tmp_path / "new/folder", "output.folder")
    assert os.listdir(tmp_path / "new/folder") == []  # noqa: PTH208 (hidden files too)
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file/folder"):
        with pytest.raises(DataError, match=r"cannot be written to: .* free\); choose another output\.folder"):
            require_writable(folder, "output.folder")
        with pytest.raises(DataError, match=r"cannot be written to: .*; make it writable"), exclusive(folder):
            pass


def test_a_held_folder_that_is_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    with exclusive(tmp_path / "run") as check:
        check()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(DataError, match=r"run: was removed or replaced while this process was at work"):
            check()
        with exclusive(tmp_path / "run"), pytest.raises(DataError, match="was removed or replaced"):
            check()


def test_holding_a_folder_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".x.json.abc.tmp").write_bytes(b"half")
    (tmp_path / "x.json").write_bytes(b"whole")
    with exclusive(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".lock", "x.json"]  # noqa: PTH208


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    taken = pytest.raises(DataError, match="another process is at work")
    with exclusive(tmp_path / "run"), taken, exclusive(tmp_path / "run"):
        pass
    with exclusive(tmp_path / "run"):
        pass
