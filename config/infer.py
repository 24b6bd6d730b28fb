"""The configuration of `transformerlm-infer`."""

from pydantic import Field

from config.schemas import Config, DecodingSection
from transformerlm.hparams import LoggingHparams, PathSetting, SamplingHparams, Strings, WandbHparams


class InferenceSection(DecodingSection):
    """Which model, and the prompts to continue."""

    checkpoint: PathSetting = Field(
        description="Checkpoint folder, or a run folder (its newest checkpoint).",
        json_schema_extra={"flag": "--checkpoint"},
    )
    prompts: Strings = Field(
        default=(),
        description="Texts to continue, as often as given; an empty one starts a new document. "
        "Typed as --prompt: plain text on stdout. From a file: records to the logging backends.",
        json_schema_extra={"flag": "--prompt"},
    )


class InferConfig(Config):
    """Continue prompts with a trained model."""

    inference: InferenceSection
    sampling: SamplingHparams = Field(default_factory=SamplingHparams)
    logging: LoggingHparams = Field(default_factory=LoggingHparams)
    wandb: WandbHparams = Field(default_factory=WandbHparams)
