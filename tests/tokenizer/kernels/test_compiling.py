"""Kernels are compiled once and kept on disk, whatever the disk does, and stderr says what takes time."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

from transformerlm.tokenizer.kernels import jit as compiling
from transformerlm.tokenizer.kernels.jit import available, kernel

ROOT = Path(__file__).parents[3]
COMPILING = "transformerlm: compiling the tokenizer's kernels"

compiles = pytest.mark.skipif(not available(), reason="numba compiles nothing")


def add_one(number: int) -> int:
    return number + 1


class FreshProcess:
    """What a process that has just begun would see: nothing said yet, no kernel loaded yet."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def call(self) -> tuple[bool, list[str]]:
        """Call a kernel, and return whether it came from the disk and the lines on stderr."""
        self.monkeypatch.setattr(compiling, "_said", set())
        self.capsys.readouterr()
        fresh: Any = kernel(add_one)
        assert fresh(41) == 42
        return sum(fresh.stats.cache_hits.values()) == 1, self.capsys.readouterr().err.splitlines()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in place of the user's, and an empty folder in place of that for temporary files."""
    monkeypatch.setattr(compiling.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


@pytest.fixture
def process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> FreshProcess:
    return FreshProcess(capsys, monkeypatch)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def refused(cache: Path) -> Path:
    """The cache folder, where no folder can be made; not even by root, whom no permission keeps out."""
    cache.write_text("in the way")
    return cache


@compiles
def test_a_kernel_is_compiled_once(cache: Path, process: FreshProcess) -> None:
    from_disk, lines = process.call()
    assert not from_disk
    assert len(lines) == 1 and lines[0].startswith(COMPILING)
    assert len(files(cache)) == 1
    assert process.call() == (True, [])
    assert files(cache.parent / "temporary") == []


@compiles
@pytest.mark.parametrize("damage", ["empty", "truncated", "one bit", "unrelated"])
def test_a_damaged_file_is_replaced(cache: Path, process: FreshProcess, damage: str) -> None:
    process.call()
    [file] = files(cache)
    whole = file.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "truncated": whole[:middle],
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "unrelated": b"\x00" * len(whole),
    }
    file.write_bytes(damaged[damage])
    from_disk, lines = process.call()
    assert not from_disk and len(lines) == 1
    assert process.call() == (True, [])


@compiles
def test_a_folder_that_has_gone_is_made_again(cache: Path) -> None:
    function = kernel(add_one)
    function(1)
    for file in files(cache):
        file.unlink()
        file.parent.rmdir()
    assert function(1.5) == 2.5
    assert len(files(cache)) == 1


@compiles
def test_a_cache_that_cannot_be_written_gives_way_to_a_private_folder(refused: Path, process: FreshProcess) -> None:
    from_disk, lines = process.call()
    assert not from_disk
    private = Path(tempfile.gettempdir()) / f"transformerlm-kernels-{os.getuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert lines[1:] == [
        f"transformerlm: compiled kernels are in {private}, not in {refused}/transformerlm/kernels "
        "(Not a directory); set NUMBA_CACHE_DIR to a folder of yours"
    ]
    assert process.call() == (True, [])


@compiles
@pytest.mark.parametrize("folder", ["another user's", "open to all", "a link", "a file"])
def test_a_temporary_folder_that_is_not_private_is_not_used(
    refused: Path, process: FreshProcess, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.call()  # makes the folder, with a file that must not be loaded from now on
    private = Path(tempfile.gettempdir()) / f"transformerlm-kernels-{os.getuid()}"
    if folder == "another user's":
        private = private.rename(private.with_name("transformerlm-kernels-12345"))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    elif folder == "open to all":
        private.chmod(0o777)
    else:
        elsewhere = private.rename(private.with_name("elsewhere"))
        private.symlink_to(elsewhere) if folder == "a link" else private.touch()
    before = files(private)
    from_disk, lines = process.call()
    assert not from_disk
    assert lines[1:] == [
        f"transformerlm: compiled kernels cannot be kept in {refused}/transformerlm/kernels (Not a directory), "
        "each start compiles again; set NUMBA_CACHE_DIR to a folder of yours"
    ]
    assert files(private) == before


@compiles
@pytest.mark.usefixtures("cache")
def test_a_full_disk_is_said_and_survived(process: FreshProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling, "_write", refuse)
    from_disk, lines = process.call()
    assert not from_disk
    assert "(No space left on device)" in lines[1] and "each start compiles again" in lines[1]
    assert len(lines) == 2


def test_a_change_of_any_module_begins_another_folder(tmp_path: Path) -> None:
    copy = copytree(ROOT / "transformerlm/tokenizer/kernels", tmp_path / "kernels")
    names = {compiling._version(copy)}
    assert names == {compiling._VERSION}, "wherever the package lies"
    modules = sorted(copy.glob("*.py"))
    for module in modules:
        module.write_bytes(module.read_bytes() + b"#")
        names.add(compiling._version(copy))
    assert len(names) == 1 + len(modules)


@compiles
def test_without_sources_nothing_is_kept(
    cache: Path, process: FreshProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_VERSION", compiling._version(tmp_path))
    from_disk, lines = process.call()
    assert not from_disk and "cannot be kept in any folder" in lines[1]
    assert not cache.exists()


@compiles
def test_folders_of_other_versions_are_kept_for_a_while(cache: Path, process: FreshProcess) -> None:
    kernels = cache / "transformerlm/kernels"
    now = time.time()
    for name, days in (("recent", 29), ("forgotten", 31)):
        (kernels / name).mkdir(parents=True)
        (kernels / name / "scanner.scan-0").touch()
        os.utime(kernels / name, times=(now, now - days * 24 * 60 * 60))
    process.call()
    assert sorted(path.name for path in kernels.iterdir()) == sorted(["recent", compiling._VERSION])


def test_a_closure_is_refused() -> None:
    def outer(step: int) -> None:
        kernel(lambda number: number + step)

    with pytest.raises(AssertionError, match="is a closure"):
        outer(1)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NUMBA_CACHE_DIR": "/n", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/n"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x"),
        ({"XDG_CACHE_HOME": "x", "HOME": "/h"}, "/h/.cache"),
        ({"HOME": "/h"}, "/h/.cache"),
    ],
)
def test_the_users_cache_folder(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(compiling.config, "CACHE_DIR", variables.pop("NUMBA_CACHE_DIR", ""))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert compiling._user_folder() == Path(expected) / "transformerlm/kernels"


# What needs a process of its own.

KERNEL = """
from transformerlm.tokenizer.kernels.jit import kernel

@kernel
def add_one(number):
    return number + 1

print(add_one(41))
"""

FORK = """
import os
child = os.fork()
if child == 0:
    os._exit(add_one(41) - 42 + round(add_one(0.5) - 1.5))  # compiles for another type
assert os.waitpid(child, 0)[1] == 0
"""

EVERY_MODULE = """
import importlib, pkgutil
import transformerlm.tokenizer.kernels as kernels

for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"{kernels.__name__}.{module.name}")
print(kernels.jit.available())
"""

HELP = """
import sys
import transformerlm.tokenizer
from cli import train_tokenizer

sys.argv = ["transformerlm-train-tokenizer", "--help"]
try:
    train_tokenizer.main()
finally:
    print("numba" in sys.modules, file=sys.stderr)
"""


def start(program: str, folder: Path = ROOT, **variables: object) -> subprocess.Popen[str]:
    """Start Python with the program, in a folder, with none of our variables but these."""
    ours = ("NUMBA_", "XDG_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {name: str(value) for name, value in variables.items()}
    words = [sys.executable, "-c", program]
    return subprocess.Popen(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Return stdout and the lines of stderr of a process that must end well."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out.strip(), err.splitlines()


@pytest.mark.slow
@compiles
def test_two_first_processes_at_once_and_a_third_after_them(tmp_path: Path) -> None:
    first_two = [start(KERNEL, NUMBA_CACHE_DIR=tmp_path) for _ in range(2)]
    for process in first_two:
        out, lines = finish(process)
        assert out == "42"
        assert len(lines) <= 1 and all(line.startswith(COMPILING) for line in lines)  # none if it came second
    assert finish(start(KERNEL, NUMBA_CACHE_DIR=tmp_path)) == ("42", [])


@pytest.mark.slow
@compiles
def test_a_home_that_cannot_be_written_and_a_fork(tmp_path: Path) -> None:
    out, lines = finish(start(KERNEL + FORK, HOME="/dev/null/home", TMPDIR=tmp_path))
    assert out == "42"
    assert lines[0].startswith(COMPILING)
    assert f"compiled kernels are in {tmp_path}/transformerlm-kernels-" in lines[1]
    assert len(lines) == 2, "each line once, also in the child"


@pytest.mark.slow
@compiles
def test_a_package_that_cannot_be_written_is_not_written_to(tmp_path: Path) -> None:
    package = copytree(ROOT / "transformerlm", tmp_path / "transformerlm", ignore=ignore_patterns("__pycache__"))
    for path in [package, *package.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = files(package)
    out, lines = finish(start(KERNEL, tmp_path, HOME=tmp_path, PYTHONDONTWRITEBYTECODE=1))
    assert out == "42" and len(lines) == 1
    assert files(package) == before, "root can write to it, but should not"
    assert files(tmp_path / ".cache") or files(tmp_path / "Library")
    for path in [package, *package.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.parametrize(("disabled", "compiled"), [(0, "True"), (1, "False")])
def test_importing_the_kernels_compiles_nothing(tmp_path: Path, disabled: int, compiled: str) -> None:
    process = start(EVERY_MODULE, NUMBA_CACHE_DIR=tmp_path, NUMBA_DISABLE_JIT=disabled)
    assert finish(process) == (compiled, [])
    assert files(tmp_path) == []


def test_importing_the_tokenizer_and_help_do_not_even_import_numba() -> None:
    out, lines = finish(start(HELP))
    assert "usage" in out.lower()
    assert lines == ["False"]
