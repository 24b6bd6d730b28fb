"""Where records go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict

from transformerlm.hparams.section import Problem, Section

LoggingBackend = Literal["console", "wandb", "noop"]
RecordFormat = Literal["auto", "text", "json"]


class LoggingHparams(Section):
    """Where records go."""

    backend: Annotated[
        tuple[LoggingBackend, ...],
        Strict(False),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(default=("console",), description="One backend or a list of them.")
    format: RecordFormat = Field(
        default="auto",
        description="How the console backend writes a record: as text, or as a line of JSON. auto is text on a "
        "terminal, JSON in a pipe or file.",
    )
    run_name: str = Field(default="run", min_length=1, description="Name of the run and of its folder.")
    architecture: str = Field(default="transformer", description="Free text, kept with the run.")
    dataset: str = Field(default="", description="Free text, kept with the run.")

    def problems(self) -> Iterator[Problem]:
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
