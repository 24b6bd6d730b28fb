"""One optimizer step, and validation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from transformerlm.distributed.sharding import ALONE, Parallelism
from transformerlm.hparams import OptimizerHparams, ScheduleHparams, TrainingHparams
from transformerlm.models import TransformerLM
from transformerlm.training.build import build_step
from transformerlm.training.optim import clipping_scale, gradient_norm
from transformerlm.training.param_groups import set_learning_rate
from transformerlm.training.schedule import learning_rate
from transformerlm.training.step_result import StepResult

Batch = tuple[Tensor, Tensor]


class Trainer:
    """A model and its optimizer; `step` is forward, backward, clipping and update.

    The model is prepared in place for its device and for the processes of `parallelism`. With `mask_after`, the id
    that ends a document, tokens attend only within their document.
    """

    def __init__(
        self,
        model: TransformerLM,
        *,
        optimizer: OptimizerHparams,
        schedule: ScheduleHparams,
        training: TrainingHparams,
        device: torch.device,
        dtype: torch.dtype,
        parallelism: Parallelism = ALONE,
        mask_after: int | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.schedule = schedule
        self.training = training
        self.parallelism = parallelism
        parts = build_step(
            model,
            optimizer=optimizer,
            training=training,
            device=device,
            dtype=dtype,
            parallelism=parallelism,
            mask_after=mask_after,
        )
        self.loss, self.training_loss, self.optimizer = parts.loss, parts.training_loss, parts.optimizer
        self.compilation = parts.compilation

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step; steps count from 1, so that the first one already learns."""
        return learning_rate(step, self.schedule, self.training.steps)

    def step(self, step: int, batch: Batch) -> StepResult:
        """Take optimizer step number `step` (from 1) on (inputs, targets), each of shape (B, T).

        The batch goes through the model `micro_batch_size` rows at a time; the gradients are accumulated. Each
        process passes its own rows; loss and gradient are averaged over all processes.
        A step whose loss or gradient is not finite changes nothing.
        """
        rate = self.learning_rate(step)
        set_learning_rate(self.optimizer, rate)
        loss = self._accumulate_gradients(batch)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = self.parallelism.norm(gradients, gradient_norm)
        finite = loss.isfinite() & norm.isfinite()
        # Decided on the device, without a sync: a scale of zero means "skip this step".
        scale = torch.where(finite, clipping_scale(norm, self.training.max_grad_norm), 0)
        self.optimizer.step(gradient_scale=scale)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(torch.stack((loss, norm.to(loss), finite.to(loss))), rate)

    def evaluate(self, batches: list[Batch]) -> float:
        """Return the mean loss per token, in nats, over (inputs, targets) batches; the weights do not change.

        Processes share the work. All pass the same batches, and all return the same loss.
        """
        world = self.parallelism.world
        pieces = list(self._in_training_shape(batches)) if self.compilation.active else batches
        own = pieces[world.rank :: world.size]
        # With FSDP all processes gather the weights of a block, so each must run the same number of forward passes.
        idle = pieces[:1] if world.rank >= len(pieces) % world.size > 0 else []
        self.loss.eval()
        try:
            # With gradients disabled, a compiled model would be recompiled.
            with torch.set_grad_enabled(self.compilation.active):
                losses = [self.loss(inputs, targets).detach() for inputs, targets in own + idle]
        finally:
            self.loss.train()
        total = world.sum(sum(torch.stack(losses).tolist()[: len(own)]))
        return total / sum(targets.numel() for _, targets in batches)

    def warm_up(self, batch: Batch) -> None:
        """Take a step that changes nothing, so that everything is compiled before the clock of the run starts."""
        self._accumulate_gradients(batch)
        self.optimizer.step(gradient_scale=torch.zeros((), device=self.device))
        self.optimizer.zero_grad(set_to_none=True)

    def _in_training_shape(self, batches: list[Batch]) -> Iterator[Batch]:
        """Yield `batches` as micro-batches of the training size; the inputs of the last are padded with zeros."""
        share = self.training.batch_size // self.parallelism.world.size
        rows = min(self.training.micro_batch_size or share, share)
        all_inputs, all_targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        for inputs, targets in zip(all_inputs.split(rows), all_targets.split(rows), strict=True):
            yield nn.functional.pad(inputs, (0, 0, 0, rows - len(inputs))), targets

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        rows = self.training.micro_batch_size or len(inputs)
        loss, rows_done = torch.zeros((), device=self.device), 0
        for micro_inputs, micro_targets in zip(inputs.split(rows), targets.split(rows), strict=True):
            rows_done += len(micro_inputs)
            with self.parallelism.accumulation(self.training_loss, last=rows_done == len(inputs)):
                micro_loss = self.training_loss(micro_inputs, micro_targets) / targets.numel()
                micro_loss.backward()
            loss += micro_loss.detach()
        return self.parallelism.world.mean(loss)
