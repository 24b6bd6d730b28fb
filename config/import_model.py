"""The configuration of `transformerlm-import`."""

from typing import Literal

from pydantic import Field

from config.schemas import Config
from transformerlm.hparams import PathSetting, Section


class ImportSection(Section):
    """Which model to import, and the checkpoint to write."""

    hf: PathSetting = Field(
        description="Folder of a Llama, Mistral, Qwen2 or Qwen3 model, as transformers saves it.",
        json_schema_extra={"flag": "--hf"},
    )
    out: PathSetting = Field(
        description="Checkpoint folder to write; nothing that exists is overwritten.",
        json_schema_extra={"flag": "--out"},
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="float32 | bfloat16 | float16: type in which the weights are stored. float32 holds any of them "
        "exactly; a model is trained in float32 whatever it was stored in.",
        json_schema_extra={"flag": "--dtype"},
    )
    tokenizer: Literal["auto", "none"] = Field(
        default="auto",
        description="auto | none: take the tokenizer too, or the weights alone, which train on token files and export.",
        json_schema_extra={"flag": "--tokenizer"},
    )
    context_length: int | None = Field(
        default=None,
        gt=0,
        description="Tokens that the model is to see, if fewer than its max_position_embeddings (unset: those).",
        json_schema_extra={"flag": "--context-length"},
    )


class ImportConfig(Config):
    """Make a checkpoint from a model of the Llama family that transformers saved."""

    import_model: ImportSection
