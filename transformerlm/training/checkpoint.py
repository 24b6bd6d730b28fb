"""Checkpoints: the simple pair for any model and optimizer, and the trainer's self-describing folders.

A folder `step_00001000/` holds the weights, the optimizer's state, the run's state and configuration, the
tokenizer, and a manifest with every file's size and SHA-256. It is written under a hidden name, flushed to disk
and renamed, so that a folder with its proper name is always whole; readers check the manifest all the same.
"""

import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import ValidationError

from transformerlm.hparams import ModelHparams
from transformerlm.training.serialization import from_bytes, read_state, to_bytes
from transformerlm.utils.errors import CheckpointError
from transformerlm.utils.files import atomic_write, sha256_file, sync_folder

FORMAT_VERSION = 1
TOKENIZER_FILES = ("vocab.json", "merges.txt")
_REMEDY = "remove its folder to go on from the checkpoint before it"
_NAME = re.compile(r"step_(\d{8,})")


def save_checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: str | os.PathLike[str] | IO[bytes]
) -> None:
    """Write model, optimizer and iteration as one safetensors file to a path (atomically) or a file object."""
    data = to_bytes({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration})
    if isinstance(out, str | os.PathLike):
        with atomic_write(Path(out)) as file:
            file.write(data)
    else:
        out.write(data)


def load_checkpoint(
    src: str | os.PathLike[str] | IO[bytes], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load what `save_checkpoint` wrote into model and optimizer; return the iteration.

    Raises `CheckpointError` if the file is missing or damaged, or does not fit the model.
    """
    if isinstance(src, str | os.PathLike):
        path = Path(src)
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such checkpoint file")
        state = read_state(path)
    else:
        state = from_bytes(src.read(), "checkpoint")
    if not isinstance(state, dict) or not {"model", "optimizer", "iteration"} <= state.keys():
        raise CheckpointError(f"{src}: is not a file that save_checkpoint wrote")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    load_model_state(model, state["model"])
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        model.load_state_dict(weights)  # all or nothing
        raise CheckpointError(f"the checkpoint does not fit the optimizer: {error}") from None
    return state["iteration"]


def load_model_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load weights; raise `CheckpointError` listing names and shapes that do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest has been verified."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Verify `path`, a checkpoint folder or a run folder (its newest checkpoint).

        Raises `CheckpointError` that names the damaged or missing file.
        """
        path = Path(path)
        is_checkpoint = path.is_dir() and _NAME.fullmatch(path.name)
        if not is_checkpoint and not (path / "manifest.json").exists():
            folders = checkpoint_folders(path / "checkpoints") or checkpoint_folders(path)
            if not folders:
                raise CheckpointError(f"{path}: holds no checkpoint; make one with transformerlm-train")
            path = folders[-1]
        _verify_manifest(path)
        return cls(path)

    @property
    def step(self) -> int:
        """Optimizer steps taken before this checkpoint."""
        return self.run_state()["step"]

    def run_state(self) -> dict[str, Any]:
        """Return `state.json`."""
        return json.loads((self.path / "state.json").read_text(encoding="utf-8"))

    def model_hparams(self) -> ModelHparams:
        """Return the model's shape, from the configuration that the checkpoint carries."""
        file = self.path / "config.toml"
        try:
            return ModelHparams.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))["model"])
        except (tomllib.TOMLDecodeError, KeyError, ValidationError) as error:
            raise CheckpointError(f"{file}: has no valid [model] table: {error}") from None

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the weights, on the CPU."""
        return read_state(self.path / "model.safetensors")

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state and the random generators', on the CPU."""
        return read_state(self.path / "optimizer.safetensors")


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run: the newest `keep_last` and the best by validation loss."""

    folder: Path
    keep_last: int
    config_toml: str
    tokenizer: Path | None
    """Folder whose tokenizer files go into every checkpoint."""

    def save(self, *, model: Any, optimizer: Any, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state["step"]` and remove those no longer kept; return its folder."""
        final = self.folder / f"step_{state['step']:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            self._write_files(temporary, model=model, optimizer=optimizer, state=state)
            if final.exists():  # the same step again, after a resume: the new one takes its place
                shutil.rmtree(final)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        self._remove_old(best=state.get("best_step"))
        return final

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None if there is none yet."""
        folders = checkpoint_folders(self.folder)
        return Checkpoint.open(folders[-1]) if folders else None

    def _write_files(self, folder: Path, *, model: Any, optimizer: Any, state: Mapping[str, Any]) -> None:
        contents = {
            "model.safetensors": to_bytes(model),
            "optimizer.safetensors": to_bytes(optimizer),
            "state.json": _json({"format_version": FORMAT_VERSION, **state}),
            "config.toml": self.config_toml.encode("utf-8"),
        }
        if self.tokenizer is not None:
            contents |= {name: (self.tokenizer / name).read_bytes() for name in TOKENIZER_FILES}
        for name, data in contents.items():
            _write_synced(folder / name, data)
        manifest = {
            name: {"size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in contents
        }
        _write_synced(folder / "manifest.json", _json({"format_version": FORMAT_VERSION, "files": manifest}))
        sync_folder(folder)

    def _remove_old(self, best: int | None) -> None:
        for path in checkpoint_folders(self.folder)[: -self.keep_last]:
            if path.name != (f"step_{best:08d}" if best is not None else None):
                hidden = path.rename(path.with_name(f".{path.name}.tmp"))  # a proper name means a whole folder
                shutil.rmtree(hidden)

    def clean(self) -> None:
        """Remove what a killed process left half written; not while another process may be writing."""
        for path in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[5:])
    )


def _verify_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is missing or damaged ({error}); {_REMEDY}") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file}: is of format {version}, and this version reads format {FORMAT_VERSION}")
    for name, (size, digest) in expected.items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{file}: names {name!r}, which is outside the folder")
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; {_REMEDY}")
        if path.stat().st_size != size or sha256_file(path) != digest:
            raise CheckpointError(f"{path}: is damaged (its content differs from the manifest); {_REMEDY}")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.toml"):
        if name not in expected:
            raise CheckpointError(f"{file}: does not list {name}; {_REMEDY}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
