"""The state of a run: what a checkpoint holds besides the weights, and continuing from one."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from transformerlm.checkpoint.folder import Checkpoint, load_model_state
from transformerlm.checkpoint.sharded import Like
from transformerlm.hparams import ModelHparams
from transformerlm.training.param_groups import load_optimizer
from transformerlm.utils.devices import fingerprint
from transformerlm.utils.dtypes import dtype_name
from transformerlm.utils.errors import CheckpointError

if TYPE_CHECKING:
    from transformerlm.training.trainer import Trainer

_MODEL_DEFAULTS = {f"model.{key}": field.default for key, field in ModelHparams.model_fields.items()}
"""Defaults of model settings that are missing in checkpoints older than the settings."""


class OtherRunError(CheckpointError):
    """A run folder holds checkpoints of a run with other data, another shape or another seed."""


@dataclass
class Progress:
    """The progress of a run; saved in every checkpoint."""

    step: int = 0
    nonfinite_steps: int = 0
    """Consecutive steps that were skipped or had a collapsed model."""
    tokens_seen: int = 0
    elapsed_seconds: float = 0.0
    """Time spent in `TrainingRun.run`, summed over all resumptions of the run."""
    valid_loss: float | None = None
    valid_step: int | None = None
    best_loss: float | None = None
    best_step: int | None = None


def saved_progress(
    checkpoint: Checkpoint, identity: Mapping[str, Any], tokens_per_step: int, *, force: bool
) -> tuple[Progress, list[str]]:
    """Return the progress of the run that saved `checkpoint`, and the differences of its identity from `identity`.

    Raises `OtherRunError` with these differences unless `force` is set.
    """
    state = checkpoint.run_state()
    saved, progress = _identity_and_progress(checkpoint, state)
    if "tokens_seen" not in state["progress"]:  # an older checkpoint
        progress.tokens_seen = progress.step * tokens_per_step
    differing = [
        f"{key} was {saved.get(key)!r} and is {identity.get(key)!r}"
        for key in {**identity, **saved}
        if _or_default(saved, key) != _or_default(identity, key)
    ]
    if differing and not force:
        raise OtherRunError(
            f"{checkpoint.path}: is of another run: {'; '.join(differing)}; choose another logging.run_name, "
            "restore those settings, or set training.resume to force to go on all the same"
        )
    return progress, differing


def _identity_and_progress(checkpoint: Checkpoint, state: Mapping[str, Any]) -> tuple[dict[str, Any], Progress]:
    """Return identity and progress from `state.json`; raise `CheckpointError` if no run has written it."""
    try:
        progress = TypeAdapter(Progress).validate_python(state.get("progress"))
    except ValidationError:
        progress = None
    if progress is None or not all(isinstance(state.get(key), dict) for key in ("identity", "environment")):
        raise CheckpointError(
            f"{checkpoint.path}: is no checkpoint of a training run; to begin one with its weights, name it as "
            "training.init_from, and choose another logging.run_name"
        )
    return state["identity"], progress


def _or_default(identity: Mapping[str, Any], key: str) -> Any:
    value = identity.get(key)
    return _MODEL_DEFAULTS.get(key) if value is None else value


def environment(trainer: "Trainer") -> dict[str, str | int | bool]:
    """Return the properties of the environment that a bit-exact repetition of the run depends on."""
    parallelism = trainer.parallelism
    processes = {"processes": parallelism.world.size, "strategy": parallelism.strategy}
    compiled = {"dtype": dtype_name(trainer.dtype), "compiled": trainer.compilation.active}
    return fingerprint(trainer.device) | compiled | processes


def trainer_state(trainer: "Trainer") -> dict[str, Any]:
    """Return the optimizer's state and the random generators', for a checkpoint."""
    random = {"cpu": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(trainer.device)
    return {"optimizer": trainer.optimizer.state_dict(), "random": random}


def load_trainer(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Load weights, optimizer and random generators; `CheckpointError` if they do not fit."""
    load_weights(trainer, checkpoint)
    state = checkpoint.optimizer_state(_like(trainer))
    try:
        load_optimizer(trainer.optimizer, state["optimizer"])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit the optimizer of these settings: {error}") from None
    torch.set_rng_state(state["random"]["cpu"])
    if trainer.device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], trainer.device)


def load_weights(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Load only the weights of a checkpoint, of any type.

    Raises `CheckpointError` if they do not fit the model, or if this code computes different logits from them than
    the code that saved them.
    """
    like = _like(trainer)
    state = checkpoint.model_state(like)
    # The first process checks sharded weights; all processes raise its error.
    trainer.parallelism.world.from_first(lambda: checkpoint.require_same_code(state if like is None else None))
    load_model_state(trainer.model, state)


def _like(trainer: "Trainer") -> Like | None:
    return _layout(trainer) if trainer.parallelism.sharded else None


def _layout(trainer: "Trainer") -> Callable[[str, torch.Size], Tensor | None]:
    """Return a function that maps a checkpoint's tensor to one of the trainer with the sharding it should have."""
    layout: dict[str, Tensor] = dict(trainer.model.state_dict())
    params = itertools.chain.from_iterable(group["params"] for group in trainer.optimizer.param_groups)
    # An optimizer's state dict numbers the parameters in the order of its groups.
    moments = {f"optimizer.state.{number}": param for number, param in enumerate(params)}

    def like(name: str, size: torch.Size) -> Tensor | None:
        found = layout.get(name, moments.get(name.rpartition(".")[0]))
        return found if found is not None and found.shape == size else None

    return like
