"""A model, a trainer and a run of the smallest useful size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformerlm.hparams import (
    CheckpointHparams,
    ModelHparams,
    OptimizerHparams,
    ScheduleHparams,
    TrainingHparams,
    TrainLoggingHparams,
    ValidationHparams,
)
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.training import BatchLoader, CheckpointStore, Trainer, TrainingRun
from transformerlm.training.data import validation_windows

CPU = torch.device("cpu")
HPARAMS = ModelHparams(vocab_size=40, context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=64)


@pytest.fixture
def make_model() -> Callable[..., TransformerLM]:
    """Builds the model of `seed`; keywords change its settings."""

    def make(seed: int = 0, **settings: Any) -> TransformerLM:
        return build_model(HPARAMS.model_copy(update=settings), seed=seed)

    return make


@pytest.fixture
def make_trainer(make_model: Callable[..., TransformerLM]) -> Callable[..., Trainer]:
    """Builds a trainer; keywords are those of `TrainingHparams`, `model`, `dtype` and `mask_after`."""

    def make(
        model: torch.nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
        mask_after: int | None = None,
        **settings: Any,
    ) -> Trainer:
        return Trainer(
            model or make_model(),
            optimizer=OptimizerHparams(),
            schedule=ScheduleHparams(max_learning_rate=1e-2, min_learning_rate=1e-3, warmup_iters=3),
            training=TrainingHparams(**{"steps": 12, "batch_size": 4, "device": "cpu", **settings}),
            device=CPU,
            dtype=dtype,
            mask_after=mask_after,
        )

    return make


@pytest.fixture
def make_run(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Callable[..., TrainingRun]:
    """Builds a run in `tmp_path / name`; `run` holds parts of `TrainingRun`, further keywords go to the trainer."""
    tokens = np.random.default_rng(0).integers(0, 40, size=2000).astype(np.uint16)

    def make(
        name: str = "run", *, keep_last: int = 2, run: dict[str, Any] | None = None, **trainer: Any
    ) -> TrainingRun:
        parts: dict[str, Any] = {
            "identity": {"data": "abc", "seed": 0},
            "logging": TrainLoggingHparams(interval=1),
            "validation": ValidationHparams(interval=5, windows=4, batch_size=2),
            "checkpoint": CheckpointHparams(interval=4),
            "flops_per_token": 1.0,
            **(run or {}),
        }
        return TrainingRun(
            trainer=make_trainer(**trainer),
            loader=BatchLoader(tokens, batch_size=4, context_length=16, seed=0, device=CPU),
            valid_batches=validation_windows(tokens, windows=4, batch_size=2, context_length=16, device=CPU),
            valid_bytes_per_token=2.0,
            store=CheckpointStore(tmp_path / name, keep_last=keep_last, config_toml="[model]\n", tokenizer=None),
            **parts,
        )

    return make
