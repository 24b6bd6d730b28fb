"""Windows over a stream of ids, and units of the loss, for validation and evaluation.

A window is as long as the model's context. Windows overlap so that tokens are scored with context, and each token is
scored in exactly one window. With a context of 4 and a stride of 2 (`·` is input only, `×` is scored as well; a token
is scored as the *next* token, so the first of the stream is not scored):

    ids          0 1 2 3 4 5 6 7 8 9
    window 0     · × × × ×              scored tokens have 1 to 4 tokens before them,
    window 1         · · · × ×          from here on 3 or 4: at least context − stride + 1
    window 2             · · · × ×
    window 3                 · · · ×    the last one may be shorter

With a stride as long as the context, windows do not overlap: each token is an input once, and tokens at the beginning
of a window have hardly any context. Validation during training uses a subset of these windows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transformerlm.utils.errors import ConfigError


class Span(NamedTuple):
    """A window: the inputs are the ids from `begin` to `end`, the targets are shifted by one."""

    begin: int
    end: int
    first_scored: int
    """Index in the window of the first input whose next id is scored; earlier inputs are context only."""


@dataclass(frozen=True)
class SlidingWindows:
    """The windows over a stream of `num_ids` ids: all but the first id are scored once, in order.

    `stride` is the distance between the starts of consecutive windows. Raises `ConfigError` unless
    1 <= stride <= context_length.
    """

    num_ids: int
    context_length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context_length:
            raise ConfigError(
                f"stride must be from 1 to the context of {self.context_length} tokens, or some would never be scored "
                f"(got {self.stride})"
            )

    @property
    def num_full(self) -> int:
        """Number of windows with `context_length` inputs."""
        return max(0, (self.num_ids - 1 - self.context_length) // self.stride + 1)

    def __len__(self) -> int:
        covered = self.context_length + (self.num_full - 1) * self.stride if self.num_full else 0
        return self.num_full + (covered < self.num_ids - 1)

    def __getitem__(self, number: int) -> Span:
        """Return window `number`, counted from 0."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        begin = number * self.stride
        end = min(begin + self.context_length, self.num_ids - 1)
        return Span(begin, end, self.context_length - self.stride if number else 0)

    def __iter__(self) -> Iterator[Span]:
        return (self[number] for number in range(len(self)))


def perplexity(loss: float) -> float:
    """Return `exp(loss)` of a loss in nats per token; the exponent is limited to 700 to avoid overflow."""
    return math.exp(min(loss, 700.0))


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Return bits per byte, from the nats and bytes of the same text: totals, or averages per token.

    Unlike the loss, it does not depend on the average number of bytes per token of the tokenizer.
    """
    return nats / math.log(2) / num_bytes
