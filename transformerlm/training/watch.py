"""Watches a run: steps that fail, a model that no longer learns, and the time a step takes."""

import contextlib
import math
import time
from collections.abc import Iterator

from transformerlm.training.step_result import StepResult
from transformerlm.training.trainer import Trainer
from transformerlm.utils.errors import TransformerLMError

_KNOWN_BY_HEART = 1e-3  # nats per token; below it a gradient may be rounded to zero


class DivergenceError(TransformerLMError):
    """Several consecutive steps had a loss or gradient that was not finite, or a model that no longer learns."""


def count_failed_steps(trainer: Trainer, step: int, result: StepResult, before: int) -> int:
    """Return the number of consecutive failed steps after this one; `before` is the number before it.

    A step fails if its loss or gradient is not finite, or if the model no longer learns. Raises `DivergenceError` when
    `max_nonfinite_steps` of them have failed.
    """
    collapsed = result.applied and has_collapsed(trainer, step, result)
    if result.applied and not collapsed:
        return 0
    failed, advice = before + 1, "lower schedule.max_learning_rate or lengthen the warm-up"
    if failed < trainer.training.max_nonfinite_steps:
        return failed
    if collapsed:
        raise DivergenceError(
            f"step {step}: the model has collapsed and no longer learns (loss {result.loss:.4f}, gradient norm "
            f"{result.grad_norm:g}, after {failed} such steps in a row); {advice}, then train anew, or from a "
            "checkpoint before the collapse"
        )
    raise DivergenceError(
        f"step {step}: loss or gradient was not finite {failed} times in a row; {advice}, then resume from the "
        "last checkpoint"
    )


def has_collapsed(trainer: Trainer, step: int, result: StepResult) -> bool:
    """Return whether the model no longer learns, although all numbers are finite.

    Either all gradients are zero although the loss is not close to zero; or, after the warm-up, the loss is exactly
    ln(vocabulary), the loss of equal logits. A model that still learns does not have this loss in several consecutive
    batches.
    """
    if result.grad_norm == 0 and result.loss > _KNOWN_BY_HEART:
        return True
    vocab_size = trainer.model.vocab_size
    if vocab_size < 2 or step <= trainer.schedule.warmup_iters:
        return False
    return math.isclose(result.loss, math.log(vocab_size), rel_tol=1e-6)


class StepClock:
    """Measures seconds per step since the last reading, smoothed over readings."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._time = time.perf_counter()
        self._smoothed: float | None = None

    def seconds_per_step(self, step: int) -> float:
        now = time.perf_counter()
        current = (now - self._time) / max(1, step - self._step)
        self._smoothed = current if self._smoothed is None else 0.7 * self._smoothed + 0.3 * current
        self._step, self._time = step, now
        return max(self._smoothed, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in the context."""
        start = time.perf_counter()
        yield
        self._time += time.perf_counter() - start
