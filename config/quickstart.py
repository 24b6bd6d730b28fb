"""The configuration of `transformerlm-quickstart`."""

from pathlib import Path

from pydantic import Field

from config.schemas import Config
from transformerlm.hparams import PathSetting, Section, Strings

RESOURCES = Path(__file__).parent / "resources"


class QuickstartSection(Section):
    """The configurations of the four stages."""

    tokenizer: PathSetting = Field(
        default=RESOURCES / "train_tokenizer.toml", description="Stage 1: train a tokenizer."
    )
    data: PathSetting = Field(default=RESOURCES / "make_data.toml", description="Stage 2: build the token files.")
    train: PathSetting = Field(default=RESOURCES / "train.toml", description="Stage 3: train a model.")
    infer: PathSetting = Field(default=RESOURCES / "infer.toml", description="Stage 4: generate.")
    prompts: Strings = Field(default=(), description="Texts to continue at the end (unset: those of stage 4).")
    force: bool = Field(default=False, description="Run every stage, also those whose outputs are up to date.")


class QuickstartConfig(Config):
    """Go from nothing to a generated story: tokenizer, data, training, generation."""

    quickstart: QuickstartSection = Field(default_factory=QuickstartSection)
