"""Builds the loss and the optimizer of a training step, from the core or in their faster versions."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from transformerlm.distributed.dtensor import on_local_vectors
from transformerlm.distributed.sharding import Parallelism
from transformerlm.fast.apply import make_fast
from transformerlm.fast.compile import Compilation, decide_together
from transformerlm.hparams import OptimizerHparams, TrainingHparams
from transformerlm.models import TransformerLM, flops_per_token
from transformerlm.models.attention import document_mask
from transformerlm.training.combined import CombinedOptimizer
from transformerlm.training.loss import NextTokenLoss
from transformerlm.training.optim import AdamW, adamw_update
from transformerlm.training.param_groups import build_optimizer


@dataclass(frozen=True)
class StepParts:
    """The functions that a `Trainer` calls in a step, prepared for its device and processes."""

    loss: nn.Module
    """Maps inputs and targets to the summed loss; for validation."""
    training_loss: nn.Module
    """The same, wrapped for the processes that train together."""
    optimizer: AdamW | CombinedOptimizer
    compilation: Compilation


def build_step(
    model: TransformerLM,
    *,
    optimizer: OptimizerHparams,
    training: TrainingHparams,
    device: torch.device,
    dtype: torch.dtype,
    parallelism: Parallelism,
    mask_after: int | None,
) -> StepParts:
    """Prepare `model`, in place, for training in `dtype`; return the parts of its step.

    With `mask_after`, tokens attend inside documents, which end with this id. Raises `ConfigError` if compilation was
    demanded and this machine cannot compile.
    """
    model.compute_dtype = dtype
    compile = training.compile if training.fast else False
    compilation = decide_together(compile, device, _run_flops(model, training, parallelism), parallelism.world)
    update = on_local_vectors(adamw_update) if parallelism.sharded else adamw_update
    loss: nn.Module
    if training.fast:
        loss, update = make_fast(
            model,
            adamw_update if compilation.active else update,
            training=training,
            device=device,
            dtype=dtype,
            compiled=compilation.active,
            mask_after=mask_after,
        )
    else:
        in_documents = functools.partial(document_mask, end_of_text_id=mask_after) if mask_after is not None else None
        loss = NextTokenLoss(model, in_documents)
    training_loss = parallelism.wrap(loss, dtype)  # shards the parameters that the optimizer is built for
    return StepParts(loss, training_loss, build_optimizer(model, optimizer, dtype=dtype, update=update), compilation)


def _run_flops(model: TransformerLM, training: TrainingHparams, parallelism: Parallelism) -> float:
    """Return the arithmetic of the whole run in this process."""
    tokens = training.steps * training.batch_size * model.context_length
    return tokens * flops_per_token(model) / parallelism.world.size
