"""The configuration of `transformerlm-eval`."""

from collections.abc import Iterator

from pydantic import Field

from config.schemas import Config, ExecutionSection, InputSection
from transformerlm.hparams import (
    DtypeName,
    EvaluationHparams,
    NamesSetting,
    PathSetting,
    PathsSetting,
    Problem,
    Strings,
)


class EvaluationSection(EvaluationHparams, ExecutionSection):
    """Which model to evaluate, on what data, and how."""

    checkpoint: PathSetting = Field(
        description="Checkpoint folder, or a run folder (its newest checkpoint).",
        json_schema_extra={"flag": "--checkpoint"},
    )
    data: PathsSetting = Field(
        default=(),
        description="Token file, or a list of them: loss and bits per byte.",
        json_schema_extra={"flag": "--data"},
    )
    choices: PathsSetting = Field(
        default=(),
        description="Multiple choice: file of JSON lines, or a list of them, each line with context, choices (a list "
        "of texts that follow it as they stand) and answer (the number of the right one, from 0).",
    )
    tasks: NamesSetting = Field(
        default=(), description="Task of lm-evaluation-harness, or a list of them (extra `eval`)."
    )
    task_path: PathSetting | None = Field(
        default=None, description="Folder with the YAML files of `tasks` (unset: the harness' own, which it downloads)."
    )
    out: PathSetting | None = Field(
        default=None,
        description="Also write the results to this file, a JSON list; there must be none of that name.",
        json_schema_extra={"flag": "--out"},
    )
    dtype: DtypeName = Field(
        default="float32",
        description="auto | float32 | bfloat16: type of the weights. float32 on every device, unlike for generation, "
        "since the numbers are to be compared; auto is bfloat16 on CUDA.",
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.task_path is not None and not self.tasks:
            yield Problem("tasks", "must be given, since task_path is", None)


class TextSection(InputSection):
    """More text to evaluate on, encoded with the checkpoint's tokenizer."""

    sources: Strings = Field(
        default=(), description="Files, globs, folders or URLs, as of transformerlm-make-data; documents as there."
    )


class EvaluateConfig(Config):
    """Evaluate a trained model: held-out loss, perplexity and bits per byte; multiple choice; tasks."""

    evaluation: EvaluationSection
    input: TextSection = Field(default_factory=TextSection)

    def problems(self) -> Iterator[Problem]:
        asked = self.evaluation
        if not (asked.data or asked.choices or asked.tasks or self.input.sources):
            yield Problem(
                "evaluation.data", "must be given, or evaluation.choices, evaluation.tasks or input.sources", None
            )
