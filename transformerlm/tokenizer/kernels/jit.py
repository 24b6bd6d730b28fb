"""Kernels: functions that numba compiles to machine code when they are first called, kept on disk from then on.

Compiling takes seconds, loading what was compiled takes milliseconds. So each kernel is compiled once on a machine:

    a kernel is called ──▶ is its machine code on disk? ── yes ──▶ load it
                                                       └── no ───▶ say so on stderr, compile, write it to disk

    ~/.cache/transformerlm/kernels/          the user's cache folder; NUMBA_CACHE_DIR takes its place
        5d0c81f2a96b4e37/                    sources of the kernels, versions of Python, numpy and numba
            scanner.scan-91be4a07c2d3f685    types of the arguments, processor

The name of a file thus says all that its content depends on. Numba's own cache detects changes only in the file that
defines a function; but kernels are inlined into their callers, with constants of other modules. So the folder is named
after the sources of all kernels, and any change to them starts a new folder. For the same reason a kernel takes
constants only from modules of this package.

If the cache is not writable, the files go to a private folder beside the temporary files, or are not kept. Each file
begins with its checksum, because damaged machine code could do anything. These cases do not raise: kernels are
recompiled, and a warning is printed on stderr.
"""

import hashlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import njit
from numba.core import config as numba_config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from transformerlm.utils.cache_folder import user_cache_folder
from transformerlm.utils.files import atomic_write

config: Any = numba_config  # its names are made when it is imported; no type checker sees them

_COMPILES = not config.DISABLE_JIT  # as it was when the kernels were made, whatever happens to it later
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_DAYS_KEPT = 30  # so that two versions used in turn do not remove each other's kernels
_WHAT_TO_DO = "set NUMBA_CACHE_DIR to a folder of yours"


def available() -> bool:
    """Return whether kernels are compiled; not with NUMBA_DISABLE_JIT=1, which leaves them slow plain Python."""
    return _COMPILES


def is_kept(name: str) -> bool:
    """Return whether the compiled kernel `module.function` is on disk."""
    return any(next(folder.glob(f"{name}-*"), None) for folder in _folders(to_write=False))


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a kernel of `function`: compiled when first called, without Python's global lock, and kept on disk.

    It must not be a closure: the values it closes over would be frozen into machine code that outlives them.
    """
    assert function.__closure__ is None, f"{function.__qualname__} is a closure; pass what it uses as arguments"
    if not available():
        return function
    compiled: Any = njit(nogil=True)(function)
    compiled._cache = _DiskCache(function)
    return compiled


def borrowing_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a kernel that allocates no arrays, not even in functions it calls: it borrows its caller's.

    Numba counts the users of an array, and so handing one to a function or taking it out of a tuple costs two atomic
    additions, as much as some forty others. In a kernel that is called for each pre-token that can be half of its
    time. This one does not count: whoever called it holds the arrays until it is done.
    """
    compiled: Any = kernel(function)
    if available():
        compiled.targetoptions["_nrt"] = False  # as numba's own `register_jitable(_nrt=False)`
    return compiled


class _DiskCache(NullCache):
    """The machine code of one kernel on disk, a file for each combination of argument types and processor.

    Numba asks it before it compiles (`load_overload`) and hands it what it compiled (`save_overload`).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._identity = (function.__module__, function.__qualname__, code.co_firstlineno, _source(code.co_filename))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the result of compiling for the signature; None, and say that compiling begins, if that is nowhere."""
        target_context.refresh()
        name = self._file_name(sig, target_context.codegen())
        for folder in _folders(to_write=False):
            payload = _read(folder / name)
            if payload is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
        _say_once("compiling", "compiling the tokenizer's kernels (once on this machine, about half a minute)")
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Write what was compiled into the first folder that takes it."""
        assert not cres.library.has_dynamic_globals, f"{self._name}: pass global arrays as arguments"
        name = self._file_name(sig, cres.library.codegen)
        payload = dumps(cres._reduce())
        refused = []
        for folder in _folders(to_write=True):
            try:
                _write(folder / name, payload)
            except OSError as error:
                refused.append(f"{folder.parent} ({error.strerror or error})")
                continue
            if refused:
                _say_once("disk", f"compiled kernels are in {folder.parent}, not in {refused[0]}; {_WHAT_TO_DO}")
            return
        folders = " or ".join(refused) or "any folder"
        _say_once("disk", f"compiled kernels cannot be kept in {folders}, each start compiles again; {_WHAT_TO_DO}")

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """Return `module.function-HASH` for the function with this signature on this processor."""
        depends_on = (self._identity, sig, codegen.magic_tuple(), config.BOUNDSCHECK, config.OPT)
        return f"{self._name}-{_hash(repr(depends_on).encode())}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]  # 64 bits: no two of a few thousand files share a name


def _read(path: Path) -> bytes | None:
    """Return what `_write` wrote to `path`; None if it is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, payload = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return payload if hashlib.sha256(payload).digest() == checksum else None


def _write(path: Path, payload: bytes) -> None:
    """Write `payload` and its checksum to `path`, whole or not at all; raise `OSError` if the disk refuses."""
    if not path.parent.exists():
        _make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)


def _make_folder(folder: Path) -> None:
    """Make the folder of this version, and remove other versions' folders that have not been written to for long.

    Another process may be about to use one of them: it compiles again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - _DAYS_KEPT * 24 * 60 * 60
    with suppress(OSError):  # another process removes them, too
        for other in folder.parent.iterdir():
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)


def _folders(to_write: bool) -> Iterator[Path]:
    """Yield the folders that may hold compiled kernels of this version, the preferred one first."""
    if not _VERSION:
        return
    user = _user_folder()
    if user:
        yield user / _VERSION
    temporary = _temporary_folder(make=to_write)
    if temporary:
        yield temporary / _VERSION


def _version(package: Path) -> str:
    """Return a hash of the package's sources and the versions of its dependencies; empty if sources are missing."""
    sources = [(path.name, path.read_bytes()) for path in sorted(package.glob("*.py"))]
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__)
    return _hash(repr((versions, sources)).encode()) if sources else ""


_VERSION = _version(Path(__file__).parent)  # at import, while the sources match the loaded kernels


@cache
def _source(path: str) -> str:
    """Return a hash of a source file; empty if it cannot be read, as for a function typed at a prompt."""
    try:
        return _hash(Path(path).read_bytes())
    except OSError:
        return ""


def _user_folder() -> Path | None:
    """Return the folder of kernels in the user's cache folder; None for a user without a home."""
    folder = user_cache_folder()
    if config.CACHE_DIR:  # numba's name for NUMBA_CACHE_DIR
        folder = Path(config.CACHE_DIR).absolute() / "transformerlm"
    return folder and folder / "kernels"


def _temporary_folder(make: bool) -> Path | None:
    """Return the folder of kernels beside the temporary files, if it is there or can be made, and is private.

    Its content is executed, and its parent is world-writable. So it is not used if another user owns it or can write to
    it.
    """
    if sys.platform == "win32":
        return None
    user = os.getuid()
    try:
        folder = Path(tempfile.gettempdir()) / f"transformerlm-kernels-{user}"
        if make:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == user and not stat.S_IMODE(status.st_mode) & 0o077
    return folder if private else None


_said: set[str] = set()


def _say_once(topic: str, text: str) -> None:
    """Print a line on stderr, if there is one, and only one a topic and process."""
    if topic in _said or sys.stderr is None:
        return
    _said.add(topic)
    with suppress(OSError, ValueError):  # ValueError: it is closed
        print(f"transformerlm: {text}", file=sys.stderr, flush=True)
