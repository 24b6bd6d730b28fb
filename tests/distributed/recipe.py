"""A small training that one process and several do alike."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transformerlm.distributed.sharding import ALONE, Parallelism, Strategy
from transformerlm.distributed.shards import whole
from transformerlm.hparams import ModelHparams, OptimizerHparams, ScheduleHparams, TrainingHparams
from transformerlm.models.build import build_model
from transformerlm.training import CheckpointStore, Trainer

STEPS = 6
BATCH_ROWS = 4
# Sizes that two does not divide leave one process more rows than the other; 1 row of a norm's gain leaves it none.
MODEL = ModelHparams(vocab_size=41, context_length=12, d_model=24, num_layers=2, num_heads=2, d_ff=33, qk_norm=True)


@dataclass(frozen=True)
class Case:
    strategy: Strategy = "single"
    micro_batch_size: int | None = None
    optimizer: str = "adamw"

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.micro_batch_size}-{self.optimizer}"


def make_trainer(case: Case, parallelism: Parallelism = ALONE, *, seed: int = 0) -> Trainer:
    return Trainer(
        build_model(MODEL, seed=seed),
        optimizer=OptimizerHparams.model_validate({"name": case.optimizer}),
        schedule=ScheduleHparams(max_learning_rate=1e-2, min_learning_rate=1e-3, warmup_iters=2),
        training=TrainingHparams(steps=STEPS, micro_batch_size=case.micro_batch_size, max_grad_norm=0.5),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parallelism=parallelism,
    )


def make_store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=2, config_toml="[model]\n", tokenizer=None)


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    """Return the batch of all processes, both tensors of shape (BATCH_ROWS, context)."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 41, (BATCH_ROWS, MODEL.context_length + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def gradients_of(trainer: Trainer, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the gradients that a step would use, whole; the step changes nothing."""
    found: dict[str, Tensor] = {}

    def spy(**_: object) -> None:
        named = trainer.model.named_parameters()
        found.update({name: whole(p.grad).clone() for name, p in named if p.grad is not None})

    step, trainer.optimizer.step = trainer.optimizer.step, spy  # type: ignore[method-assign]
    trainer.step(1, batch)
    trainer.optimizer.step = step  # type: ignore[method-assign]
    return found
