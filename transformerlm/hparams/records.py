"""Where records go."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from transformerlm.hparams.section import NamesSetting, Problem, Section

LOGGING_BACKENDS = ("console", "wandb", "noop")


class LoggingHparams(Section):
    """Where records go."""

    backend: NamesSetting = Field(default=("console",), description="console | wandb | noop, or a list of them.")
    run_name: str = Field(default="run", min_length=1, description="Name of the run and of its folder.")
    architecture: str = Field(default="transformer", description="Free text, kept with the run.")
    dataset: str = Field(default="", description="Free text, kept with the run.")

    def problems(self) -> Iterator[Problem]:
        for name in self.backend:
            if name not in LOGGING_BACKENDS:
                nearest = difflib.get_close_matches(name, LOGGING_BACKENDS, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                yield Problem("backend", f"must be one of {', '.join(LOGGING_BACKENDS)}, or a list of them", name, hint)
        if Path(self.run_name).name != self.run_name or self.run_name.startswith("."):
            yield Problem("run_name", "must be a plain folder name", self.run_name)


class TrainLoggingHparams(LoggingHparams):
    """Where records go, and how often."""

    interval: int = Field(default=10, gt=0, description="Steps between records.")
    activation_norm_interval: int = Field(
        default=0, ge=0, description="Steps between records of the blocks' output norms (0: never)."
    )
    weight_norm_interval: int = Field(
        default=0, ge=0, description="Steps between records of the weights' norms (0: never)."
    )


class WandbHparams(Section):
    """Weights & Biases, used when logging.backend names wandb."""

    entity: str | None = Field(default=None, description="User or team (unset: the account's default).")
    project: str = Field(default="transformerlm", min_length=1, description="Project.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None, description="online | offline | disabled (unset: as WANDB_MODE says, else online)."
    )
