"""The configuration of `transformerlm-export`."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from config.schemas import Config
from transformerlm.hparams import PathSetting, Problem, Section

GGUF_SUFFIX = ".gguf"


class ExportSection(Section):
    """Which model to export, and in what format."""

    checkpoint: PathSetting = Field(
        description="Checkpoint folder, or a run folder (its newest checkpoint).",
        json_schema_extra={"flag": "--checkpoint"},
    )
    format: Literal["hf", "gguf"] = Field(
        default="hf",
        description="hf | gguf: a folder for transformers, vLLM and SGLang, or a file for llama.cpp (extra `gguf`).",
        json_schema_extra={"flag": "--format"},
    )
    out: PathSetting = Field(
        description="Folder, or file that ends in .gguf, to write; nothing that exists is overwritten.",
        json_schema_extra={"flag": "--out"},
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="float32 | bfloat16 | float16: type of the weights; float32 is what a checkpoint holds.",
        json_schema_extra={"flag": "--dtype"},
    )

    def problems(self) -> Iterator[Problem]:
        if (self.format == "gguf") != (self.out.suffix == GGUF_SUFFIX):
            rule = "must end in .gguf" if self.format == "gguf" else "ends in .gguf, which is for --format gguf"
            yield Problem("out", rule, str(self.out))


class ExportConfig(Config):
    """Write a trained model in a format that other programs load."""

    export: ExportSection
