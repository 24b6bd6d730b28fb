"""The result of an optimizer step."""

import functools

from torch import Tensor


class StepResult:
    """The result of one step. Its numbers stay on the device until one is read, which is a host–device sync."""

    def __init__(self, numbers: Tensor, learning_rate: float) -> None:
        self._numbers = numbers
        self.learning_rate = learning_rate

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the batch, in nats per token."""
        return self._read[0]

    @property
    def grad_norm(self) -> float:
        """Joint L2 norm of the gradients before clipping."""
        return self._read[1]

    @property
    def applied(self) -> bool:
        """False if the step was skipped because loss or gradient was not finite."""
        return self._read[2] > 0

    @functools.cached_property
    def _read(self) -> list[float]:
        return self._numbers.tolist()
