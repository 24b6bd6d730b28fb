"""The configuration of `transformerlm-inspect-data`."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from config.schemas import Config
from transformerlm.hparams import PathSetting, Problem, Section


class InspectSection(Section):
    """What to inspect."""

    data: PathSetting = Field(
        description="Token file, or the name of an index of many.", json_schema_extra={"flag": "--data"}
    )
    train_config: PathSetting | None = Field(
        default=None, description="Configuration of a training: its epochs, its windows and its batches."
    )
    tokenizer: PathSetting | None = Field(
        default=None, description="Folder of the tokenizer, for texts (unset: data.tokenizer of train_config)."
    )
    window: int | None = Field(default=None, ge=0, description="Show the text of this window, counted from 0.")
    context_length: int | None = Field(
        default=None, gt=0, description="Tokens of a window (unset: model.context_length of train_config, else 256)."
    )
    step: int | None = Field(
        default=None, gt=0, description="Show the batch of this step of train_config, counted from 1."
    )
    longest: int = Field(default=3, ge=0, description="Longest documents to list; 0 for none saves reading the data.")
    format: Literal["text", "json"] = Field(default="text", description="text | json: for people, or one JSON object.")

    def problems(self) -> Iterator[Problem]:
        if self.step is not None and self.train_config is None:
            yield Problem("train_config", "must be given, since step is", None)
        elif self.window is not None and self.tokenizer is None and self.train_config is None:
            yield Problem("tokenizer", "must be given, or train_config, since window is", None)


class InspectDataConfig(Config):
    """Inspect the data that a model is trained on."""

    inspect: InspectSection
