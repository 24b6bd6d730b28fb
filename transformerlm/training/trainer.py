"""One optimizer step, and the state that makes the next one the same after a restart."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transformerlm.hparams import OptimizerHparams, ScheduleHparams, TrainingHparams
from transformerlm.training.checkpoint import Checkpoint, load_model_state
from transformerlm.training.loss import cross_entropy
from transformerlm.training.optim import AdamW, gradient_clipping, parameter_groups
from transformerlm.training.schedule import lr_cosine_schedule

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one step did. `applied` is False if loss or gradient was not finite and the step was skipped."""

    loss: float
    grad_norm: float
    learning_rate: float
    applied: bool


class Trainer:
    """A model and its optimizer; `step` is forward, backward, clipping and update."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerHparams,
        schedule: ScheduleHparams,
        training: TrainingHparams,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.schedule = schedule
        self.training = training
        self.optimizer = AdamW(
            parameter_groups(model, optimizer.weight_decay),
            lr=schedule.max_learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step; steps count from 1, so that the first one already learns."""
        return lr_cosine_schedule(
            step,
            self.schedule.max_learning_rate,
            self.schedule.min_learning_rate,
            self.schedule.warmup_iters,
            self.schedule.cosine_cycle_iters or self.training.steps,
        )

    def step(self, step: int, batch: Batch) -> StepResult:
        """Take optimizer step number `step` (from 1) on (inputs, targets), each of shape (B, T).

        The batch goes through the model in pieces of `micro_batch_size` rows; the gradients add up to those
        of the whole batch. A step whose loss or gradient is not finite changes nothing.
        """
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._accumulate_gradients(batch)
        norm = gradient_clipping(self.model.parameters(), self.training.max_grad_norm)
        loss_value, norm_value = torch.stack((loss, norm.to(loss))).tolist()
        applied = math.isfinite(loss_value) and math.isfinite(norm_value)
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss_value, norm_value, learning_rate, applied)

    def evaluate(self, batches: list[Batch]) -> float:
        """Return the mean loss per token, in nats, over (inputs, targets) batches; the weights stay as they are."""
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in batches:
                with self._autocast():
                    logits = self.model(inputs)
                total += cross_entropy(logits, targets).sum().item()
                count += targets.numel()
        self.model.train()
        return total / count

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state and the random generators', for a checkpoint."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"optimizer": self.optimizer.state_dict(), "random": random}

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_model_state(self.model, checkpoint.model_state())
        state = checkpoint.optimizer_state()
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        rows = self.training.micro_batch_size or len(inputs)
        loss = torch.zeros((), device=self.device)
        for micro_inputs, micro_targets in zip(inputs.split(rows), targets.split(rows), strict=True):
            with self._autocast():
                logits = self.model(micro_inputs)
            micro_loss = cross_entropy(logits, micro_targets).sum() / targets.numel()
            micro_loss.backward()
            loss += micro_loss.detach()
        return loss

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
