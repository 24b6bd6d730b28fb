"""The training loop: a generator of records.

It trains, validates and saves; the caller iterates over it, logs the records and shows the progress. So the
library neither prints nor logs, and a caller may stop at any record.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformerlm.checkpoint.folder import Checkpoint, CheckpointStore
from transformerlm.checkpoint.group_store import GroupCheckpointStore
from transformerlm.hparams import CheckpointHparams, TrainLoggingHparams, ValidationHparams
from transformerlm.training.data import BatchLoader
from transformerlm.training.diagnostics import activation_norms, weight_norms
from transformerlm.training.scoring import bits_per_byte, perplexity
from transformerlm.training.state import Progress, environment, load_trainer, saved_progress, trainer_state
from transformerlm.training.step_result import StepResult
from transformerlm.training.trainer import Batch, Trainer
from transformerlm.training.watch import StepClock, count_failed_steps
from transformerlm.utils.devices import peak_flops, peak_memory_bytes

Record = dict[str, Any]

_MAX_PENDING = 100  # read results at least this often, even without logging


@dataclass
class TrainingRun:
    """The parts of a run, and its loop. Build it, optionally call `resume`, then iterate over `run`."""

    trainer: Trainer
    loader: BatchLoader
    valid_batches: list[Batch]
    valid_bytes_per_token: float
    store: CheckpointStore | GroupCheckpointStore
    identity: Mapping[str, Any]
    """The settings that must match for a run to be resumed: data, tokenizer, shape, seed."""
    logging: TrainLoggingHparams
    validation: ValidationHparams
    checkpoint: CheckpointHparams
    flops_per_token: float
    should_stop: Callable[[], bool] = lambda: False
    progress: Progress = field(default_factory=Progress)
    _saved_step: int = 0
    _began: float = 0.0
    """Clock reading at which the run would have begun if it had never been interrupted."""

    def resume(self, checkpoint: Checkpoint, *, force: bool = False) -> list[str]:
        """Resume from `checkpoint`; return the differences from the run that saved it.

        Without `force` any difference raises `OtherRunError`. Raises `CheckpointError` if the weights or the
        optimizer's state do not fit.
        """
        progress, differing = saved_progress(checkpoint, self.identity, self._tokens_per_step, force=force)
        load_trainer(self.trainer, checkpoint)
        self.progress = progress
        self._saved_step = self.progress.step
        return differing

    def counters(self, step: int | None = None) -> Record:
        """Return the fields of every record: time spent in the run so far, tokens seen up to `step` (None: now)."""
        late = 0 if step is None else self.progress.step - step
        return {
            "metrics.elapsed_seconds": self.progress.elapsed_seconds,
            "metrics.tokens_seen": self.progress.tokens_seen - late * self._tokens_per_step,
        }

    def run(self) -> Iterator[Record]:
        """Train to the last step; yield the records to log.

        Raises `DivergenceError` after `max_nonfinite_steps` steps in a row that were skipped or had a collapsed
        model.
        """
        self._began = time.perf_counter() - self.progress.elapsed_seconds
        for record in self._records():
            self.progress.elapsed_seconds = time.perf_counter() - self._began
            yield record | self.counters(record["step"])

    @property
    def _tokens_per_step(self) -> int:
        return self.loader.batch_size * self.loader.context_length

    def _records(self) -> Iterator[Record]:
        steps = self.trainer.training.steps
        clock = StepClock(self.progress.step)
        pending: list[tuple[int, StepResult]] = []
        while self.progress.step < steps and not self.should_stop():
            step = self.progress.step + 1
            result, norms = self._step(step)
            self.progress.step = step
            self.progress.tokens_seen += self._tokens_per_step
            pending.append((step, result))
            recorded = step == 1 or step % self.logging.interval == 0 or step == steps or bool(norms)
            stops = step % self.validation.interval == 0 or step % self.checkpoint.interval == 0
            if recorded or stops or len(pending) == _MAX_PENDING:
                yield from self._flush(pending)
            if recorded:
                yield self._train_record(result, clock) | norms
            if step % self.validation.interval == 0 and step != steps:
                with clock.paused():
                    yield self._validate()
            if step % self.checkpoint.interval == 0 and step != steps:
                with clock.paused():
                    yield from self._save()
        yield from self._flush(pending)
        if self.progress.step != self._saved_step:
            yield from self._save()
        finished = self.progress.step >= steps
        yield {"event": "train_end", "step": self.progress.step, "finished": finished}

    def _flush(self, pending: list[tuple[int, StepResult]]) -> Iterator[Record]:
        """Read the results of the steps since the last flush: the only host–device sync of the loop."""
        for step, result in pending:
            if not result.applied:
                numbers = {"metrics.loss": result.loss, "metrics.grad_l2_norm": result.grad_norm}
                yield {"event": "skipped_step", "step": step, **numbers}
            before = self.progress.nonfinite_steps
            self.progress.nonfinite_steps = count_failed_steps(self.trainer, step, result, before)
        pending.clear()

    def _step(self, step: int) -> tuple[StepResult, Record]:
        """Take a step, and record the norms if they are due."""
        batch = self.loader.batch(step - 1)
        with contextlib.ExitStack() as stack:
            activations = {}
            if _due(step, self.logging.activation_norm_interval):
                activations = stack.enter_context(activation_norms(self.trainer.model))
            result = self.trainer.step(step, batch)
        record = {f"metrics.activation_norm.{name}": value.item() for name, value in activations.items()}
        if _due(step, self.logging.weight_norm_interval):
            weights = weight_norms(self.trainer.model)
            record |= {f"metrics.weight_norm.{name}": value.item() for name, value in weights.items()}
        return result, record

    def _train_record(self, result: StepResult, clock: StepClock) -> Record:
        seconds_per_step = clock.seconds_per_step(self.progress.step)
        tokens_per_second = self.loader.batch_size * self.loader.context_length / seconds_per_step
        device = self.trainer.device
        record = {
            "event": "train_step",
            "step": self.progress.step,
            "metrics.loss": result.loss,
            "metrics.lr": result.learning_rate,
            "metrics.grad_l2_norm": result.grad_norm,
            "metrics.epoch": self.loader.epoch(self.progress.step),
            "metrics.tokens_per_second": tokens_per_second,
            "metrics.peak_memory_mb": peak_memory_bytes(device) / 1e6,
            "metrics.seconds_left": (self.trainer.training.steps - self.progress.step) * seconds_per_step,
        }
        peak = peak_flops(device, self.trainer.dtype)
        if peak is not None:
            devices = self.trainer.parallelism.world.size
            record["metrics.mfu"] = tokens_per_second * self.flops_per_token / (peak * devices)
        return record

    def _validate(self) -> Record:
        loss = self.trainer.evaluate(self.valid_batches)
        self.progress.valid_loss = loss if math.isfinite(loss) else None
        self.progress.valid_step = self.progress.step
        return {
            "event": "validation",
            "step": self.progress.step,
            "metrics.valid_loss": loss,
            "metrics.valid_perplexity": perplexity(loss),
            "metrics.valid_bits_per_byte": bits_per_byte(loss, self.valid_bytes_per_token),
        }

    def _save(self) -> Iterator[Record]:
        """Save this step, at most once, with its validation loss, which decides the best checkpoint."""
        progress = self.progress
        if progress.valid_step != progress.step:
            yield self._validate()
        loss = progress.valid_loss
        if loss is not None and (progress.best_loss is None or loss < progress.best_loss):
            progress.best_loss, progress.best_step = loss, progress.step
        progress.elapsed_seconds = time.perf_counter() - self._began
        path = self.store.save(
            model=self.trainer.model.state_dict(),
            optimizer=trainer_state(self.trainer),
            state={
                "step": progress.step,
                "best_step": progress.best_step,
                "progress": vars(progress),
                "identity": dict(self.identity),
                "data": {"next_sample": progress.step * self.loader.batch_size, "seed": self.loader.seed},
                "schedule": {"learning_rate": self.trainer.learning_rate(max(1, progress.step))},
                "environment": environment(self.trainer),
            },
        )
        self._saved_step = progress.step
        yield {"event": "checkpoint", "step": progress.step, "path": str(path), "best_step": progress.best_step}


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
