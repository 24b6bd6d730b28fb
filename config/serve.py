"""The configuration of `transformerlm-serve`."""

from pydantic import Field

from config.schemas import Config, DecodingSection
from transformerlm.hparams import PathSetting
from transformerlm.serving.settings import LimitsHparams, ServerHparams


class ServedModelSection(DecodingSection):
    """Which model to serve, and how many sequences it decodes at a time."""

    checkpoint: PathSetting = Field(
        description="Checkpoint folder, or a run folder (its newest checkpoint).",
        json_schema_extra={"flag": "--checkpoint"},
    )
    name: str | None = Field(
        default=None, min_length=1, description="What clients call the model (unset: the name of the run's folder)."
    )
    slots: int = Field(
        default=8,
        gt=0,
        le=1024,
        description="Continuations that are decoded at a time; each takes memory for a full context.",
    )


class ServeConfig(Config):
    """Serve a trained model over HTTP: OpenAI's completions, and a page to play with."""

    model: ServedModelSection
    server: ServerHparams = Field(default_factory=ServerHparams)
    limits: LimitsHparams = Field(default_factory=LimitsHparams)
