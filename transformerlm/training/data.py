"""Batches of token ids, as a pure function of (seed, step, row in the batch).

An epoch cuts the data into windows of `context_length + 1` ids that overlap by one (the last target of a
window is the first input of the next) and goes through them in the order of a permutation. The permutation
is computed, not stored: a Feistel network over the window's number. So a corpus of any size needs no list in
memory, and the batch of any step can be computed without the steps before it.

With several data sets, `mixture` chooses the data set of each window; each data set has its own epochs.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from transformerlm.training.mixture import PERIOD, Mixture
from transformerlm.training.permutation import permuted
from transformerlm.training.scoring import SlidingWindows
from transformerlm.utils.errors import ConfigError, DataError


class Tokens(Protocol):
    """A sequence of ids: a `TokenStream`, or an array of shape (num_tokens,)."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]: ...


def get_batch(
    dataset: Tokens, batch_size: int, context_length: int, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random windows (inputs, targets), both int64 of shape (batch_size, context_length).

    Targets are the inputs shifted by one. The windows come from numpy's global generator; training
    itself uses `BatchLoader`. Raises `DataError` if the data is shorter than one window.
    """
    num_starts = len(dataset) - context_length
    if num_starts < 1:
        raise DataError(f"{len(dataset)} tokens hold no window of {context_length} + 1; shorten context_length")
    starts = np.random.randint(0, num_starts, size=batch_size)  # reproducible with np.random.seed
    return _to_device(_windows(dataset, starts, context_length), torch.device(device))


class WindowOrder:
    """The order in which a run uses the windows of a data set: one epoch after the other.

    Each epoch has a different order and a different offset. `number` is the index of the data set in a mixture.
    """

    def __init__(self, num_tokens: int, *, context_length: int, seed: int, number: int = 0) -> None:
        self.num_tokens = num_tokens
        self.context_length = context_length
        self.seed = seed
        self.number = number
        # One less than would fit, so that each epoch can start at a different offset.
        self.windows_in_epoch = max(1, (num_tokens - 1) // context_length - 1)

    def starts(self, uses: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the start offsets of the windows with the indices `uses` (from 0) in the order of the run."""
        epochs, numbers = np.divmod(uses, self.windows_in_epoch)
        starts = np.empty_like(uses)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            seed = (self.seed, int(epoch), self.number)
            order = permuted(numbers[chosen], self.windows_in_epoch, seed=seed)
            starts[chosen] = order * self.context_length + self._offset(seed)
        return starts

    def _offset(self, seed: tuple[int, ...]) -> int:
        spare = self.num_tokens - 1 - self.windows_in_epoch * self.context_length
        return int(np.random.default_rng(seed).integers(0, spare + 1))


class BatchLoader:
    """The training batches; each row depends only on the seed, the step and its index in the batch.

    Rank `rank` of `world_size` gets its share of each batch. Together all ranks see the rows of a single process.
    """

    def __init__(
        self,
        tokens: Tokens | list[Tokens],
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        """`tokens` is one data set, or a list of several, mixed by `weights` (default: their numbers of tokens).

        `batch_size` counts the rows of all processes. Raises `ConfigError` if they cannot share it evenly, or if a
        weight is too small relative to the others.
        """
        if batch_size % world_size:
            raise ConfigError(f"batch_size must be divisible by the {world_size} processes (got {batch_size})")
        self.rank = rank
        self.world_size = world_size
        self.datasets: tuple[Tokens, ...] = tuple(tokens) if isinstance(tokens, list) else (tokens,)
        self.mixture = Mixture(weights or [len(dataset) for dataset in self.datasets], seed=seed)
        self.orders = [
            WindowOrder(len(dataset), context_length=context_length, seed=seed, number=number)
            for number, dataset in enumerate(self.datasets)
        ]
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.device = device

    def epoch(self, step: int) -> float:
        """Return the approximate number of epochs before `step` (an epoch's offset may cost a window)."""
        return step * self.batch_size / sum(order.windows_in_epoch for order in self.orders)

    def epochs(self, step: int) -> list[float]:
        """Return the same for each data set separately."""
        quotas = zip(self.mixture.quotas, self.orders, strict=True)
        return [step * self.batch_size * quota / PERIOD / order.windows_in_epoch for quota, order in quotas]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs, targets) of a step, both int64 of shape (batch_size / world_size, context_length)."""
        numbers, starts = self.places(step)
        rows = np.empty((len(starts), self.context_length + 1), dtype=np.int64)
        for number in np.unique(numbers):
            chosen = numbers == number
            rows[chosen] = _windows(self.datasets[number], starts[chosen], self.context_length)
        return _to_device(rows, self.device)

    def places(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return, for each row of a step's batch, the index of its data set and its start offset there."""
        rows = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * rows
        numbers, uses = self.mixture.assign(np.arange(first, first + rows))
        starts = np.empty_like(uses)
        for number, order in enumerate(self.orders):
            chosen = numbers == number
            starts[chosen] = order.starts(uses[chosen])
        return numbers, starts


def validation_windows(
    tokens: Tokens, *, windows: int, batch_size: int, context_length: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return at most `windows` windows, evenly spread over `tokens`, in batches; the same in every call."""
    all_windows = SlidingWindows(len(tokens), context_length, stride=context_length)
    fitting = all_windows.num_full
    starts = np.arange(min(windows, fitting)) * fitting // min(windows, fitting) * all_windows.stride
    return [
        _to_device(_windows(tokens, starts[first : first + batch_size], context_length), device)
        for first in range(0, len(starts), batch_size)
    ]


def _windows(tokens: Tokens, starts: npt.NDArray[np.int64], context_length: int) -> npt.NDArray[np.int64]:
    return np.stack([tokens[start : start + context_length + 1] for start in starts.tolist()]).astype(np.int64)


def _to_device(rows: npt.NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    windows = torch.from_numpy(rows)
    if device.type == "cuda":  # asynchronous copy: the host does not wait for the device
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=device.type == "cuda")
    return windows[:, :-1], windows[:, 1:]
