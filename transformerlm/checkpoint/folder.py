"""The trainer's checkpoints: self-describing folders.

A folder `step_00001000/` holds the weights, the optimizer's state, the run's state and configuration, the
tokenizer, and a manifest with every file's size and SHA-256. It is written under a hidden name, flushed to disk
and renamed, so that a folder with its final name is always complete; readers check the manifest anyway.

    .step_00001000.tmp      being written or removed; deleted when the next run starts
    step_00001000           a checkpoint
    .step_00001000.old      a checkpoint that is being replaced by another one of the same step
    step_00001000.damaged   skipped on resuming, kept for inspection
"""

import contextlib
import functools
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from transformerlm.checkpoint.fingerprint import FINGERPRINT_FILE, fingerprint, probe_logits, require_same_code
from transformerlm.checkpoint.integrity import (
    FORMAT_VERSION,
    MANIFEST,
    DamagedCheckpointError,
    FolderWriter,
    to_json,
    verify_manifest,
)
from transformerlm.checkpoint.sharded import Like, Part, holds_pieces, read_pieces
from transformerlm.checkpoint.tensor_file import encode, read_state
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import CheckpointError
from transformerlm.utils.files import require_free_space, sync_folder, writing
from transformerlm.utils.json_file import read_json_object

TOKENIZER_FILES = ("vocab.json", "merges.txt")
TOKENIZER_SETTINGS_FILE = "tokenizer_settings.json"
"""The third, optional file of a tokenizer."""
GENERATION_FILE = "generation_config.json"
"""Lists the ids that end a text, if there are several; the same file as in a Hugging Face folder."""

MAX_STATE_BYTES = 1 << 24

_NAME = re.compile(r"step_(\d{8,})")


def load_model_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load weights; raise `CheckpointError` listing names and shapes that do not fit."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:  # TypeError: it is not a mapping
        raise CheckpointError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from None


def _why_there_is_none(path: Path) -> str:
    if not path.exists():
        return "there is no such folder; transformerlm-train makes checkpoints"
    if (path / "config.json").exists():
        return f"is a folder of transformers'; make a checkpoint of it with transformerlm-import --hf {path}"
    return "holds no checkpoint; make one with transformerlm-train"


def read_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the end-of-text ids in `generation_config.json` of `folder`; empty if there are none.

    Raises `CheckpointError` if the file is damaged.
    """
    file = folder / GENERATION_FILE
    if not file.exists():
        return ()
    found = read_json_object(file, max_bytes=MAX_STATE_BYTES, error=CheckpointError).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"{file}: eos_token_id must be a token id or a list of them; restore the file")
    return tuple(dict.fromkeys(ids))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest has been verified."""

    path: Path

    @classmethod
    def open(cls, path: Path, *, to_resume: bool = False) -> "Checkpoint":
        """Verify `path`, a checkpoint folder or a run folder (its newest checkpoint).

        The optimizer's state may be missing unless the checkpoint is `to_resume` a run.
        Raises `CheckpointError` that names the damaged or missing file.
        """
        path = Path(path)
        is_checkpoint = path.is_dir() and _NAME.fullmatch(path.name)
        if not is_checkpoint and not (path / MANIFEST).exists():
            folders = checkpoint_folders(path / "checkpoints") or checkpoint_folders(path)
            if not folders:
                raise CheckpointError(f"{path}: {_why_there_is_none(path)}")
            path = folders[-1]
        verify_manifest(path, to_resume=to_resume)
        return cls(path)

    @property
    def step(self) -> int:
        """Optimizer steps taken before this checkpoint."""
        return self.run_state()["step"]

    def run_state(self) -> dict[str, Any]:
        """Return `state.json`; raise `CheckpointError` if it is not a JSON object or has no step."""
        file = self.path / "state.json"
        state = read_json_object(file, max_bytes=MAX_STATE_BYTES, error=CheckpointError)
        if type(state.get("step")) is not int or state["step"] < 0:
            raise CheckpointError(f"{file}: is damaged: it does not say the step")
        return state

    def model_hparams(self) -> ModelHparams:
        """Return the model's shape, from the configuration in the checkpoint."""
        file = self.path / "config.toml"
        try:
            hparams = ModelHparams.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))["model"])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (ValueError, KeyError, RecursionError) as error:  # ValueError: not TOML or not UTF-8
            problem = str(error)
        else:
            misfit = next(hparams.problems(), None)
            if misfit is None:
                return hparams
            problem = f"{misfit.key}: {misfit.message} (got {misfit.got})"
        raise CheckpointError(f"{file}: has no valid [model] table: {problem}")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text, if the checkpoint names them beside its tokenizer; the tokenizer's comes first."""
        return read_eos_token_ids(self.path)

    def model_state(self, like: Like | None = None) -> dict[str, torch.Tensor]:
        """Return the weights, on the CPU or sharded as `like` says; with `like`, all processes call this."""
        return self._state("model", like)

    def require_same_code(self, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Raise `CheckpointError` if this code computes different logits than the code that saved the weights.

        Warns of a small difference that is larger than rounding. `state` is `model_state()`, if already loaded.
        """
        if (self.path / FINGERPRINT_FILE).exists():
            require_same_code(self.path, self.model_hparams(), self.model_state() if state is None else state)

    def optimizer_state(self, like: Like | None = None) -> dict[str, Any]:
        """Return the states of the optimizer and the random generators; `like` as in `model_state`."""
        return self._state("optimizer", like)

    def _state(self, part: Part, like: Like | None) -> Any:
        file = self.path / f"{part}.safetensors"
        if not holds_pieces(self.path) and not file.exists():
            raise CheckpointError(
                f"{file}: is missing; without it the checkpoint serves for inference and as training.init_from only"
                if part == "optimizer"
                else f"{file}: is missing; restore the checkpoint"
            )
        if like is None and not holds_pieces(self.path):
            return read_state(file)
        return read_pieces(self.path, part, like)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run: the newest `keep_last` and the best by validation loss."""

    folder: Path
    """Created when the first checkpoint is saved; its parent must exist."""
    keep_last: int
    config_toml: str
    tokenizer: Path | None
    """Folder whose tokenizer files go into every checkpoint; they are read once, by `prepare` or the first `save`."""
    hparams: ModelHparams | None = None
    """The model, whose logits are saved in every checkpoint; None for a model of another kind."""

    def clean(self) -> None:
        """Remove the incomplete files of a killed process; not while another process may be writing."""
        for path in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(path)
        for path in self.folder.glob(".step_*.old"):
            final = path.with_name(path.stem[1:])
            shutil.rmtree(path) if final.exists() else path.rename(final)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`, which need not exist."""
        return self.folder / _name(step)

    def prepare(self, num_bytes: int) -> None:
        """Before the first step: read the tokenizer's files, and check the disk space for a checkpoint.

        Raises `DataError` if the disk has less than `num_bytes` free.
        """
        _ = self._tokenizer_files
        require_free_space(self.folder, num_bytes, "a checkpoint")

    def save(self, *, model: Any, optimizer: Any, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state["step"]` and remove those no longer kept; return its folder.

        When it returns, the checkpoint is on disk and has been read back. Raises `DataError` if it cannot be
        written, `CheckpointError` if it reads back differently; earlier checkpoints are kept.
        """
        files = {"model.safetensors": encode(model), "optimizer.safetensors": encode(optimizer)}
        with self.new(state, num_bytes=sum(file.num_bytes for file in files.values())) as folder:
            for name, pieces in files.items():
                folder.write(name, pieces)
            folder.write(FINGERPRINT_FILE, [self.fingerprint(model)])
        return self.path(state["step"])

    def fingerprint(self, model: Mapping[str, torch.Tensor]) -> bytes:
        """Return the content of `fingerprint.json` for these weights."""
        return fingerprint(None if self.hparams is None else probe_logits(self.hparams, model))

    @contextlib.contextmanager
    def new(self, state: Mapping[str, Any], *, num_bytes: int) -> Iterator[FolderWriter]:
        """Create the checkpoint of `state["step"]` from the files, about `num_bytes`, that the context writes.

        On success, state, configuration, tokenizer and manifest are added, the folder gets its final name, and old
        checkpoints are removed.
        """
        step = state["step"]
        final = self.path(step)
        temporary, old = _hidden(final, ".tmp"), _hidden(final, ".old")
        try:
            with writing(self.folder, f"the checkpoint of step {step}", num_bytes):
                if not self.folder.exists():
                    self.folder.mkdir()
                    sync_folder(self.folder.parent)
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                writer = FolderWriter(temporary)
                yield writer
                for name, data in self._small_files(state).items():
                    writer.write(name, [data])
                writer.seal()
                if final.exists():
                    final.rename(old)
                temporary.rename(final)
                sync_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after the rename it does not exist
        shutil.rmtree(old, ignore_errors=True)
        self._remove_old(step, best=state.get("best_step"))

    def newest(self, damaged: list[DamagedCheckpointError] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint, or None if there never was one.

        Damaged checkpoints raise. If a list is given, they are appended to it and skipped; if none is intact,
        `CheckpointError` is raised, so that a run never silently starts from scratch.
        """
        problems: list[str] = []
        for folder in reversed(checkpoint_folders(self.folder)):
            try:
                return Checkpoint.open(folder, to_resume=True)
            except DamagedCheckpointError as error:
                if damaged is None:
                    raise
                damaged.append(error)
                problems.append(error.problem)
        problems += [f"{path}: was set aside as damaged" for path in sorted(self.folder.glob("step_*.damaged*"))]
        if problems:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is left to go on from ({'; '.join(problems)}); "
                "restore one, or begin anew under another logging.run_name"
            )
        return None

    def set_aside(self, folder: Path) -> Path:
        """Rename a damaged checkpoint, so that it is ignored but not lost; return the new path."""
        aside = folder.with_name(f"{folder.name}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{folder.name}.damaged{number}")
        folder.rename(aside)
        sync_folder(self.folder)
        return aside

    @functools.cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        if self.tokenizer is None:
            return {}
        optional = (TOKENIZER_SETTINGS_FILE, GENERATION_FILE)
        names = (*TOKENIZER_FILES, *(name for name in optional if (self.tokenizer / name).exists()))
        return {name: (self.tokenizer / name).read_bytes() for name in names}

    def _small_files(self, state: Mapping[str, Any]) -> dict[str, bytes]:
        return {
            "state.json": to_json({"format_version": FORMAT_VERSION, **state}),
            "config.toml": self.config_toml.encode("utf-8"),
            **self._tokenizer_files,
        }

    def _remove_old(self, newest: int, best: int | None) -> None:
        """Remove checkpoints older than `newest`, just saved, that are neither among the last few nor the best."""
        older = [path for path in checkpoint_folders(self.folder) if _step(path) < newest]
        for path in older[: max(0, len(older) - (self.keep_last - 1))]:
            if _step(path) != best:
                hidden = path.rename(_hidden(path, ".tmp"))  # a final name means a complete folder
                shutil.rmtree(hidden, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _hidden(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")
