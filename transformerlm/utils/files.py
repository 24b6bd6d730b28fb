"""Files that are either whole or absent: atomic writes, checksums, one process a folder, and room on the disk.

What stops a write (a full disk, a missing permission, a folder that has gone) is said in one line: where, what was
needed, and what there is.
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

    The data is flushed to disk before the rename, so that after a crash `path` holds either its
    old content or all of the new. On an exception the temporary file is removed.

    Without `durable` the disk is not waited for: that survives the end of this process, but not that of the machine.
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
        temporary.unlink(missing_ok=True)  # after the rename there is none
    if durable:
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield the path of a hidden file beside `path`, for a library that opens files itself; rename it on success.

    As `atomic_write`, and `DataError` if the disk has no room for `num_bytes` or refuses.
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
    """Yield a hidden folder beside `path`, which gets that name on success and is removed on an exception.

    The files in it must have been flushed to disk. At `path` there may be an empty folder. Raises `DataError` if the
    disk has no room for `num_bytes` or refuses.
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
            shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is none
        sync_folder(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Write `data` with `atomic_write`; raise `DataError` if the disk has no room or refuses."""
    path = Path(path)
    with writing(path.parent, path.name, len(data)), atomic_write(path, durable=durable) as file:
        file.write(data)


def atomic_write_text(path: Path | str, text: str, *, durable: bool = True) -> None:
    """Write `text` as UTF-8, line ends untouched, with `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: Path | str, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON that `json.loads` of any language reads (no NaN)."""
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
    """Hold `folder` for this process while the context is open; create it if need be.

    The temporary files that a killed process left in it are removed.
    Yields a function that raises `DataError` if the folder was removed since, for then it is held no longer.
    Raises `DataError` if another process holds it. The lock ends with the process, however that ends.
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
    """Raise `DataError` if the disk of `folder` has not `num_bytes` free, or a write in the context fails.

    Its one line says where `what` was to go, how much it needs, why it failed and how much there is.
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
    """Create `folder` and try a file in it: a result must not fail to be written when the work is done.

    Raises `DataError` that names `setting`, where the folder came from.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error, f"choose another {setting}") from None


def free_space(folder: Path) -> tuple[Path, int]:
    """Return the nearest folder that exists at or above `folder`, and the free bytes of its disk."""
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing, shutil.disk_usage(existing).free


def size_text(num_bytes: int) -> str:
    """Return a size for people: in MB, or in kB or bytes where that would be less than a tenth."""
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
