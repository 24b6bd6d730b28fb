"""Atomic writes, checksums, folder locks, and checks of disk space.

A failed write (a full disk, a missing permission, a removed folder) raises `DataError` with one line: where, how much
space was needed, and how much there is.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from transformerlm.utils.errors import DataError


@contextlib.contextmanager
def atomic_write(path: Path | str, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a hidden temporary file beside `path` for writing bytes; rename it to `path` on success.

    The data is flushed to disk before the rename, so that after a crash `path` has either its old content or all of
    the new. On an exception the temporary file is removed. Without `durable` nothing is flushed: the file survives a
    crash of this process, but not of the machine.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # already renamed on success
    if durable:
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield the path of a hidden file beside `path`, for a library that opens files itself; rename it on success.

    Like `atomic_write`, but raises `DataError` if the disk lacks space for `num_bytes` or a write fails.
    """
    with writing(path.parent, path.name, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_path(path)
        try:
            with temporary.open("xb") as file:
                yield temporary
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, which is renamed to `path` on success and removed on an exception.

    The caller flushes the files in it. An empty folder at `path` is replaced. Raises `DataError` if the disk lacks
    space for `num_bytes` or a write fails.
    """
    with writing(path.parent, path.name, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_path(path)
        temporary.mkdir()
        try:
            yield temporary
            sync_folder(temporary)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # already renamed on success
        sync_folder(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Write `data` with `atomic_write`; raise `DataError` if the disk lacks space or the write fails."""
    path = Path(path)
    with writing(path.parent, path.name, len(data)), atomic_write(path, durable=durable) as file:
        file.write(data)


def atomic_write_text(path: Path | str, text: str, *, durable: bool = True) -> None:
    """Write `text` as UTF-8 with `atomic_write_bytes`, without converting line ends."""
    atomic_write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: Path | str, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented, strictly standard JSON (no NaN)."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock `folder` for this process while the context is open; create it if necessary.

    Temporary files left by a killed process are removed. Yields a function that raises `DataError` if the folder was
    removed or replaced in the meantime, since the lock is lost then. Raises `DataError` if another process has the
    lock. The lock ends with the process, even if it is killed.
    """
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise _not_writable(folder, error, "make it writable, or choose another") from None

    def check() -> None:
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise DataError(f"{folder}: was removed or replaced while this process was at work in it; start it again")

    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is at work in it; wait for it, or choose another") from None
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink()
        yield check


@contextlib.contextmanager
def writing(folder: Path, what: str, num_bytes: int) -> Iterator[None]:
    """Raise `DataError` if the disk of `folder` has less than `num_bytes` free, or a write in the context fails.

    The message says where `what` was being written, how much space it needs, how much is free, and why it failed.
    """
    require_free_space(folder, num_bytes, what)
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: {what} needs {size_text(num_bytes)} and cannot be written: {error.strerror or error} "
            f"({size_text(free_space(folder)[1])} free); mend that, and start again"
        ) from error


def require_free_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Raise `DataError` if the disk of `folder` (which may not exist yet) has less than `num_bytes` free."""
    existing, free = free_space(folder)
    if free < num_bytes:
        raise DataError(
            f"{existing}: {purpose} needs about {size_text(num_bytes)}, the disk has "
            f"{size_text(free)} free; free some space or write elsewhere"
        )


def require_writable(folder: Path, setting: str) -> None:
    """Create `folder` and try to write a file in it, so that a bad path is found before any work is done.

    Raises `DataError` that names `setting`, the setting with the folder's path.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error, f"choose another {setting}") from None


def free_space(folder: Path) -> tuple[Path, int]:
    """Return `folder` or its nearest existing parent, and the free bytes on its disk."""
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing, shutil.disk_usage(existing).free


def size_text(num_bytes: int) -> str:
    """Format a size in MB, or in kB or bytes if it is less than 0.1 of the larger unit."""
    if 0 < num_bytes < 1e3:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 1e3:,.1f} kB" if 0 < num_bytes < 1e5 else f"{num_bytes / 1e6:,.1f} MB"


def _not_writable(folder: Path, error: OSError, advice: str) -> DataError:
    free = size_text(free_space(folder)[1])
    return DataError(f"{folder}: cannot be written to: {error.strerror or error} ({free} free); {advice}")


def _temporary_path(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process or thread uses.

    Files and folders are created under it with the ordinary permissions: the kernel applies the umask, which Python
    can only read by changing it for all threads.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
