"""Batches of token ids, as a pure function of (seed, step, place in the batch).

An epoch cuts the data into windows of `context_length + 1` ids that overlap by one (the last target of a
window is the first input of the next) and goes through them in the order of a permutation. The permutation
is computed, not stored: a Feistel network over the window's number, so that a corpus of any size needs no
list in memory, and any step's batch can be had without the steps before it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from transformerlm.utils.errors import ConfigError, DataError
from transformerlm.utils.token_file import TokenFileInfo, open_tokens, read_info, verify_data

_FEISTEL_ROUNDS = 4  # Luby and Rackoff 1988: four rounds of a random function are indistinguishable from random


def get_batch(
    dataset: npt.NDArray, batch_size: int, context_length: int, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random windows (inputs, targets), both int64 of shape (batch_size, context_length).

    Targets are the inputs moved on by one. The windows come from numpy's global generator; training
    itself uses `BatchLoader`. Raises `DataError` if the data is shorter than one window.
    """
    num_starts = len(dataset) - context_length
    if num_starts < 1:
        raise DataError(f"{len(dataset)} tokens hold no window of {context_length} + 1; shorten context_length")
    starts = np.random.randint(0, num_starts, size=batch_size)  # so that np.random.seed governs it
    return _windows(dataset, starts, context_length, torch.device(device))


@dataclass(frozen=True)
class TokenDataset:
    """A token file, memory-mapped, with its sidecar."""

    path: Path
    tokens: npt.NDArray
    info: TokenFileInfo

    @classmethod
    def open(cls, path: Path, *, context_length: int, verify: bool = True) -> "TokenDataset":
        """Open `path`; raise `DataError` if it is damaged or holds not even one window."""
        info = read_info(path)
        if verify:
            verify_data(path, info)
        if info.num_tokens < context_length + 1:
            raise DataError(
                f"{path}: has {info.num_tokens} tokens, fewer than one window of context_length + 1 = "
                f"{context_length + 1}; use more text or a smaller model.context_length"
            )
        return cls(path, open_tokens(path, info), info)

    def bytes_per_token(self) -> float:
        """Return how many bytes of text a token stands for, on average."""
        return self.info.num_text_bytes / self.info.num_tokens


class BatchLoader:
    """The training batches: a row of one depends on seed, step and its place in the batch alone.

    Of `world_size` processes, number `rank` gets its share of each batch: together they see what a single one sees.
    """

    def __init__(
        self,
        tokens: npt.NDArray,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`batch_size` is that of all processes together; `ConfigError` if they cannot share it evenly."""
        if batch_size % world_size:
            raise ConfigError(f"batch_size must be divisible by the {world_size} processes (got {batch_size})")
        self.rank = rank
        self.world_size = world_size
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.device = device

    def epoch(self, step: int) -> float:
        """Return how often the data has been read before `step`, about (an epoch's offset may cost a window)."""
        return step * self.batch_size / self._windows_in_epoch()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs, targets) of a step, both int64 of shape (batch_size / world_size, context_length)."""
        rows = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * rows
        slots = np.arange(first, first + rows)
        epochs, numbers = np.divmod(slots, self._windows_in_epoch())
        starts = np.empty_like(slots)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            order = permuted(numbers[chosen], self._windows_in_epoch(), seed=(self.seed, int(epoch)))
            starts[chosen] = order * self.context_length + self._offset(int(epoch))
        return _windows(self.tokens, starts, self.context_length, self.device)

    def _windows_in_epoch(self) -> int:
        # One less than fit, so that each epoch can start at another offset and cut the text elsewhere.
        fitting = (len(self.tokens) - 1) // self.context_length
        return max(1, fitting - 1)

    def _offset(self, epoch: int) -> int:
        spare = len(self.tokens) - 1 - self._windows_in_epoch() * self.context_length
        return int(np.random.default_rng((self.seed, epoch)).integers(0, spare + 1))


def permuted(numbers: npt.NDArray[np.int64], size: int, *, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return where a seeded permutation of range(size) sends `numbers`, all of them in range(size).

    A Feistel network permutes the numbers of 2b bits; one that lands at `size` or beyond goes through it
    again until it lands inside ("cycle walking": Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    keys = np.random.default_rng(seed).integers(0, 2**64, size=_FEISTEL_ROUNDS, dtype=np.uint64)
    result = np.asarray(numbers, dtype=np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= size
    return result.astype(np.int64)


def validation_windows(
    tokens: npt.NDArray, *, windows: int, batch_size: int, context_length: int, device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the same batches every time: at most `windows` windows, evenly spread over `tokens`."""
    fitting = (len(tokens) - 1) // context_length
    starts = np.arange(min(windows, fitting)) * fitting // min(windows, fitting) * context_length
    return [
        _windows(tokens, starts[first : first + batch_size], context_length, device)
        for first in range(0, len(starts), batch_size)
    ]


def _windows(
    tokens: npt.NDArray, starts: npt.NDArray, context_length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.stack([tokens[start : start + context_length + 1] for start in starts]).astype(np.int64)
    windows = torch.from_numpy(rows)
    if device.type == "cuda":  # copied while the device still computes the steps before: the host need not wait
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=device.type == "cuda")
    return windows[:, :-1], windows[:, 1:]


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of input reaches every bit of output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
