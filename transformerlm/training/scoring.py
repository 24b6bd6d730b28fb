"""What validation inside training and evaluation afterwards share: windows over a stream of ids, and units.

A window is as long as the model's context. Windows overlap, so that a token is scored with context, and each token is
scored in one of them only. With a context of 4 and a stride of 2 (`·` is seen, `×` is scored as well; a token is
scored where it is the *next* one, so the first of the stream, which nothing comes before, is not):

    ids          0 1 2 3 4 5 6 7 8 9
    window 0     · × × × ×              what is scored has 1 to 4 tokens before it,
    window 1         · · · × ×          from here on 3 or 4: at least context − stride + 1
    window 2             · · · × ×
    window 3                 · · · ×    the last one may be shorter

A stride as long as the context is the plainest case, in which windows only touch: each token is seen once, and those
at the beginning of a window have hardly any context. Validation inside training draws its windows from these.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transformerlm.utils.errors import ConfigError


class Span(NamedTuple):
    """A window: inputs are the ids from `begin` to `end`, targets those one further on."""

    begin: int
    end: int
    first_scored: int
    """Place in the window of the first input whose next id is scored; those before it are context only."""


@dataclass(frozen=True)
class SlidingWindows:
    """The windows over a stream of `num_ids` ids: all but the first id are scored once, in order.

    `stride` is how far each window lies after the one before it. Raises `ConfigError` unless
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
        """How many windows have `context_length` inputs."""
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
    """Return e to the loss, which is in nats a token; what would overflow is cut off at e^700."""
    return math.exp(min(loss, 700.0))


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Return bits a byte of text, of nats and bytes of the same text: of all of it, or of a token on average.

    Unlike the loss it does not depend on how many bytes a token of this or that tokenizer stands for.
    """
    return nats / math.log(2) / num_bytes
