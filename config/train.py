"""The configuration of `transformerlm-train`."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from config.schemas import Config
from transformerlm.hparams import (
    CheckpointHparams,
    DataHparams,
    ModelHparams,
    OptimizerHparams,
    ParallelHparams,
    Problem,
    ScheduleHparams,
    TrainingHparams,
    TrainLoggingHparams,
    ValidationHparams,
    WandbHparams,
)


class TrainConfig(Config):
    """Train a model on token files."""

    data: DataHparams
    model: ModelHparams = Field(default_factory=ModelHparams)
    optimizer: OptimizerHparams = Field(default_factory=OptimizerHparams)
    schedule: ScheduleHparams = Field(default_factory=ScheduleHparams)
    training: TrainingHparams = Field(default_factory=TrainingHparams)
    parallel: ParallelHparams = Field(default_factory=ParallelHparams)
    validation: ValidationHparams = Field(default_factory=ValidationHparams)
    checkpoint: CheckpointHparams = Field(default_factory=CheckpointHparams)
    logging: TrainLoggingHparams = Field(default_factory=TrainLoggingHparams)
    wandb: WandbHparams = Field(default_factory=WandbHparams)

    @classmethod
    def completed_later(cls, tables: Mapping[str, Any]) -> frozenset[str]:
        """With `training.init_from`, the checkpoint completes the model settings."""
        training = tables.get("training")
        return frozenset({"model"} if isinstance(training, dict) and "init_from" in training else ())

    def problems(self) -> Iterator[Problem]:
        schedule, steps = self.schedule, self.training.steps
        if schedule.cosine_cycle_iters is None and schedule.warmup_iters > steps:
            yield Problem(
                "schedule.warmup_iters",
                f"must not exceed training.steps = {steps}, where the schedule ends",
                schedule.warmup_iters,
            )
