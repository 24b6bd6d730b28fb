"""The manifest of a checkpoint folder: every file's size and SHA-256, to detect flipped bits.

Safetensors and torch.save do not notice a flipped bit in a tensor. Here a file is hashed twice when it is written,
once from memory and once as read back from the file, and again whenever it is loaded.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformerlm.utils.errors import CheckpointError
from transformerlm.utils.files import sha256_file, sync_folder

FORMAT_VERSION = 2
"""Version of written checkpoints. Format 1, which can still be read, stored the optimizer's tuples as lists."""
MANIFEST = "manifest.json"
REQUIRED_FILES = ("state.json", "config.toml")

_READABLE_VERSIONS = (1, FORMAT_VERSION)
_OPTIMIZER_FILE = re.compile(r"optimizer\.safetensors|shard-\d+-model-00002-of-00002\.safetensors")
_REMEDY = "name another checkpoint, or remove this one's folder to go on from the one before it"
_UNREADABLE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENAMETOOLONG}
"""Error codes of a file that is missing or unreadable on a broken disk; a missing permission is not damage."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing, or differs from the manifest."""

    def __init__(self, file: Path, problem: str) -> None:
        self.folder = file.parent
        self.problem = f"{file}: {problem}"
        super().__init__(f"{self.problem}; {_REMEDY}")


class FolderWriter:
    """Writes the files of a new checkpoint folder, each flushed to disk, then the manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, str] = {}

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file piece by piece, and remember its hash."""
        digest = hashlib.sha256()
        with (self.folder / name).open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        self._digests[name] = digest.hexdigest()

    def seal(self) -> None:
        """Read back every file of the folder, also from other processes, and write the manifest.

        Raises `CheckpointError` if a file reads back differently.
        """
        files = {}
        for path in sorted(self.folder.iterdir()):
            digest = sha256_file(path)
            if self._digests.get(path.name, digest) != digest:
                raise CheckpointError(f"{path}: reads otherwise than it was written; do not trust this disk or memory")
            if path.name not in self._digests:
                _sync_file(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": digest}
        self.write(MANIFEST, [to_json({"format_version": FORMAT_VERSION, "files": files})])
        sync_folder(self.folder)


def verify_manifest(folder: Path, *, to_resume: bool = False) -> dict[str, tuple[int, str]]:
    """Check every file of a checkpoint folder; return their sizes and hashes.

    The optimizer's files may be missing unless the checkpoint is `to_resume` a run.

    Raises `DamagedCheckpointError` that names the file, `CheckpointError` for a format of another version.
    """
    manifest = folder / MANIFEST
    try:
        data = manifest.read_bytes()
        content = json.loads(data)
        version = content["format_version"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        as_written = to_json(content)
    except OSError as error:
        raise _damage(manifest, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(manifest, f"is damaged ({error})") from None
    if version not in _READABLE_VERSIONS:
        raise _other_version(manifest, version)
    if data != as_written:
        raise DamagedCheckpointError(manifest, "is damaged: it is not as it was written")
    for name in REQUIRED_FILES:
        if name not in expected:
            raise DamagedCheckpointError(manifest, f"is damaged: it does not list {name}")
    for name, (size, digest) in expected.items():
        if Path(name).name != name or "\0" in name:
            raise DamagedCheckpointError(manifest, f"is damaged: it names {name!r}, which is outside the folder")
        if to_resume or not _OPTIMIZER_FILE.fullmatch(name) or (folder / name).exists():
            _verify_file(folder / name, size, digest)
    return expected


def _verify_file(path: Path, size: int, digest: str) -> None:
    try:
        unchanged = path.stat().st_size == size and sha256_file(path) == digest
    except OSError as error:
        raise _damage(path, error) from None
    if not unchanged:
        raise DamagedCheckpointError(path, f"is damaged: its content is not what {MANIFEST} says")


def _damage(path: Path, error: OSError) -> OSError | DamagedCheckpointError:
    if error.errno not in _UNREADABLE:
        return error
    if error.errno == errno.ENOENT:
        return DamagedCheckpointError(path, "is missing" + f", though {MANIFEST} lists it" * (path.name != MANIFEST))
    return DamagedCheckpointError(path, f"is damaged ({error.strerror})")


def _other_version(manifest: Path, version: Any) -> CheckpointError:
    """A manifest of another version, or of this one with a flipped bit? `state.json` holds the version too."""
    try:
        in_state = json.loads(manifest.with_name("state.json").read_text(encoding="utf-8"))["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        in_state = None
    if in_state in _READABLE_VERSIONS:
        return DamagedCheckpointError(manifest, f"is damaged: it says format {version!r}, and state.json {in_state}")
    return CheckpointError(f"{manifest}: is of format {version}, and this version reads formats up to {FORMAT_VERSION}")


def to_json(value: Any) -> bytes:
    """Return indented JSON that any language reads (no NaN)."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
