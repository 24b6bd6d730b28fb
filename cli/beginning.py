"""`training.init_from`: a run initialised from the weights and the model settings of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.data import RunData
from cli.progress import say
from config.train import TrainConfig
from transformerlm.utils.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from transformerlm.distributed.group import World
    from transformerlm.hparams import ModelHparams
    from transformerlm.training import Checkpoint, TrainingRun

CONTEXT = "context_length"
"""No weight's shape depends on it: it may be smaller, or larger with other rotary settings."""


def run_dir_of(config: TrainConfig) -> Path:
    """Return the run folder of a training."""
    return config.training.runs_dir / config.logging.run_name


@dataclass(frozen=True)
class Beginning:
    """The checkpoint that defines a run's model."""

    checkpoint: "Checkpoint"
    is_new: bool
    """Whether the run starts with its weights; false if the run resumes from its own checkpoints."""

    @classmethod
    def find(cls, config: TrainConfig, world: "World") -> "Beginning | None":
        """Return the checkpoint of `training.init_from`, or None if it is unset; all processes call this.

        Raises `CheckpointError` if that checkpoint is missing or damaged; a resumed run does not need it.
        """
        from transformerlm.training import Checkpoint

        named = config.training.init_from
        if named is None:
            return None
        own = world.from_first(lambda: _own_checkpoint(run_dir_of(config)))
        if own is not None:
            return cls(Checkpoint(own), is_new=False)
        return cls(Checkpoint(world.from_first(lambda: Checkpoint.open(named).path)), is_new=True)

    def completed(self, config: TrainConfig, *, origin: str) -> TrainConfig:
        """Return `config` with the checkpoint's model; raise `ConfigError` listing contradicting settings.

        A shorter context is allowed, and a longer one if the rotary settings are changed to support it.
        """
        model, given = self.checkpoint.model_hparams(), config.model
        rotary = {key for key in given.model_fields_set if key.startswith("rope_") and not _agrees(key, given, model)}
        longer = given.context_length > model.context_length and CONTEXT in given.model_fields_set
        if longer and not rotary:
            raise ConfigError(
                f"{origin}: model.context_length: is {model.context_length} in {self.checkpoint.path}, whose weights "
                f"know no later positions (got {given.context_length}); to lengthen it, slow the rotary positions too, "
                f'as by model.rope_scaling = "linear" and model.rope_factor = '
                f"{given.context_length / model.context_length:g}, or raise model.rope_theta"
            )
        taken = {CONTEXT, *rotary} if longer else {CONTEXT}
        lines = [
            f"{origin}: model.{key}: is {getattr(model, key)!r} in {self.checkpoint.path}, where training.init_from "
            f"has the model begin (got {getattr(given, key)!r}); leave it unset"
            for key in sorted(given.model_fields_set - taken)
            if not _agrees(key, given, model)
        ]
        if lines:
            raise ConfigError("\n".join(lines))
        update = {key: getattr(given, key) for key in taken & given.model_fields_set}
        model = model.model_copy(update=update)
        problems = [f"{origin}: model.{p.key}: {p.message} (got {p.got})" for p in model.problems()]
        if problems:
            raise ConfigError("\n".join(problems))
        return config.model_copy(update={"model": model})

    def require_tokenizer(self, config: TrainConfig, data: RunData) -> None:
        """Raise `DataError` unless the data was made with the checkpoint's tokenizer, if it has one."""
        from transformerlm.checkpoint.folder import TOKENIZER_FILES
        from transformerlm.tokenizer import Tokenizer

        folder = self.checkpoint.path
        if not all((folder / name).exists() for name in TOKENIZER_FILES):
            say(f"{folder}: holds no tokenizer, so it is not known whether {config.data.tokenizer} is the model's")
        elif Tokenizer.load(folder).sha256() != data.valid.info.tokenizer_sha256:
            raise DataError(
                f"{config.data.tokenizer}: is another tokenizer than that of {folder}, whose model training.init_from "
                "has the run begin with: the same ids would mean other text; make the token files with "
                f"transformerlm-make-data --output.tokenizer {folder}, and name that as data.tokenizer"
            )

    def load(self, run: "TrainingRun") -> None:
        """Load the checkpoint's weights into the model of a run, and log it."""
        from transformerlm.training.state import load_weights

        load_weights(run.trainer, self.checkpoint)
        say(f"beginning with the weights of {self.checkpoint.path}")


def _agrees(key: str, given: "ModelHparams", model: "ModelHparams") -> bool:
    return getattr(given, key) == getattr(model, key)


def _own_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of the run folder with readable model settings; its integrity is checked later."""
    from transformerlm.checkpoint.folder import checkpoint_folders
    from transformerlm.training import Checkpoint

    for folder in reversed(checkpoint_folders(run_dir / "checkpoints")):
        try:
            Checkpoint(folder).model_hparams()
        except CheckpointError:
            continue
        return folder
    return None
