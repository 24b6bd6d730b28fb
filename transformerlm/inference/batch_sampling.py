"""Sampling for the rows of a batch at once, each with settings and a seed of its own.

    logits ──penalty of tokens that were there──▶ ÷ temperature ──softmax──▶ probabilities
    probabilities ──top-k, top-p, min-p──▶ weights of the most likely tokens ──a number u in [0, 1)──▶ the token

The token is the one at which the running sum of the weights passes u times their total. The number u is a hash of the
row's seed and of how many tokens it has drawn: so what a row draws does not depend on the rows beside it, nor on when
it came. There is no loop over rows, and nothing waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.sampling import is_greedy, softmax
from transformerlm.utils.dtypes import at_least_float32

FEW = 256
"""Most of the probability mostly lies in so few tokens, which are found faster than all of them are sorted."""

_ALL = torch.iinfo(torch.int64).max
"""A `top_k` that is none."""

# SplitMix64 (Steele, Lea and Flood 2014), as signed numbers
_STEP, _FACTOR_1, _FACTOR_2 = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@final
class BatchSampler:
    """Draws a token for each row of a batch."""

    def __init__(self, rows: Sequence[SamplingHparams], device: torch.device) -> None:
        """`rows` are the settings of each row."""
        greedy = [is_greedy(row.temperature, row.top_k, row.top_p) for row in rows]
        filtered = [_is_filtered(row) and not likeliest for row, likeliest in zip(rows, greedy, strict=True)]
        temperatures = [1.0 if likeliest else row.temperature for row, likeliest in zip(rows, greedy, strict=True)]
        self._greedy_B1 = _column(greedy, device)
        self._temperature_B1 = _column(temperatures, device)
        self._penalty_B1 = _column([row.repetition_penalty for row in rows], device)
        self._seeds_B1 = _column([row.seed for row in rows], device)
        self._filters = _Filters.of(rows, filtered, device) if any(filtered) else None
        self._are_all_greedy = all(greedy)
        self.penalizes = any(row.repetition_penalty != 1 for row in rows)
        """Whether `draw` wants to know the tokens that were there."""

    def draw(self, logits_BV: Tensor, numbers_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """Return the token (B,) that each row draws.

        Args:
            logits_BV: of the next token.
            numbers_B: how many tokens each row has drawn before.
            seen_BV: True for tokens that are in a row's prompt or continuation; needed if `penalizes`.
        """
        logits_BV = at_least_float32(logits_BV)
        if self.penalizes:
            assert seen_BV is not None
            logits_BV = penalized(logits_BV, seen_BV, self._penalty_B1)
        likeliest_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        if self._are_all_greedy:
            return likeliest_B1.squeeze(1)
        probs_BV = softmax(logits_BV / self._temperature_B1, dim=-1)
        uniform_B1 = uniform_numbers(self._seeds_B1, numbers_B.unsqueeze(1))
        drawn_B1 = invert(probs_BV, uniform_B1)
        if self._filters is not None:
            drawn_B1 = torch.where(self._filters.rows, self._filters.draw(probs_BV, uniform_B1), drawn_B1)
        return torch.where(self._greedy_B1, likeliest_B1, drawn_B1).squeeze(1)


class _Filters(NamedTuple):
    """Among how many of the most likely tokens rows sample; all columns are of shape (B, 1)."""

    rows: Tensor
    """Those that do not sample among all; the others have a `top_k` of 1 here, so as to ask for nothing."""
    top_k: Tensor
    """`_ALL` if there is no such limit."""
    top_p: Tensor
    min_p: Tensor
    largest_top_k: int

    @classmethod
    def of(cls, rows: Sequence[SamplingHparams], filtered: Sequence[bool], device: torch.device) -> "_Filters":
        """Return the filters of `rows`, as far as they are `filtered`."""
        top_k = [(row.top_k or _ALL) if one else 1 for row, one in zip(rows, filtered, strict=True)]
        return cls(
            _column(filtered, device),
            _column(top_k, device),
            _column([row.top_p for row in rows], device),
            _column([row.min_p for row in rows], device),
            max(top_k),
        )

    def draw(self, probs_BV: Tensor, uniform_B1: Tensor) -> Tensor:
        """Return tokens (B, 1)."""
        vocab_size = probs_BV.shape[-1]
        # Whether few are enough is known on the CPU at once; for another device one would have to wait.
        if min(self.largest_top_k, vocab_size) > FEW and probs_BV.device.type == "cpu":
            ordered_BC, ids_BC = probs_BV.topk(FEW, dim=-1)
            if self._are_enough(ordered_BC):
                return self._draw(ordered_BC, ids_BC, uniform_B1)
        return self._draw(*probs_BV.topk(min(self.largest_top_k, vocab_size), dim=-1), uniform_B1)

    def _are_enough(self, ordered_BC: Tensor) -> bool:
        """Return whether no row samples among more tokens than these."""
        beyond_top_p_B1 = ordered_BC.sum(dim=-1, keepdim=True) >= self.top_p
        below_min_p_B1 = ordered_BC[:, -1:] < self.min_p * ordered_BC[:, :1]
        is_cut_B1 = (self.top_k == _ALL) & (beyond_top_p_B1 | below_min_p_B1)
        return bool((is_cut_B1 | (self.top_k <= ordered_BC.shape[-1])).all())

    def _draw(self, ordered_BC: Tensor, ids_BC: Tensor, uniform_B1: Tensor) -> Tensor:
        ranks_C = torch.arange(ordered_BC.shape[-1], device=ordered_BC.device)
        weights_BC = ordered_BC.masked_fill(ranks_C >= self.top_k, 0)
        # top_p is a share of what top_k leaves; without a top_k that is everything, whatever was looked at
        total_B1 = weights_BC.sum(dim=-1, keepdim=True).where(self.top_k != _ALL, 1)
        before_BC = weights_BC.cumsum(dim=-1) - weights_BC
        dropped_BC = (before_BC >= self.top_p * total_B1) | (ordered_BC < self.min_p * ordered_BC[:, :1])
        dropped_BC[:, 0] = False
        return ids_BC.gather(1, invert(weights_BC.masked_fill(dropped_BC, 0), uniform_B1))


def _column(values: Sequence[float] | Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).unsqueeze(1)


def _is_filtered(row: SamplingHparams) -> bool:
    return row.top_k is not None or row.top_p < 1 or row.min_p > 0


def penalized(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Return logits in which those of tokens seen are divided by the penalty, or, if negative, multiplied by it.

    The repetition penalty of Keskar et al. 2019 (CTRL, section 4.1), with the sign regarded as everybody does since.
    """
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def invert(weights_BC: Tensor, numbers_B1: Tensor) -> Tensor:
    """Return the place (B, 1) at which the running sum of a row passes a number in [0, 1) times its total.

    A place of weight 0 is never returned.
    """
    sums_BC = weights_BC.cumsum(dim=-1)
    total_B1 = sums_BC[:, -1:]
    below_total_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # products are rounded, perhaps up
    return torch.searchsorted(sums_BC, torch.minimum(numbers_B1 * total_B1, below_total_B1), right=True)


def uniform_numbers(seeds: Tensor, numbers: Tensor) -> Tensor:
    """Return float32 numbers in [0, 1) that depend on seed and number alone (both int64, of the same shape)."""
    return _shifted(_mixed(_mixed(seeds) + numbers * _STEP), 40).to(torch.float32) * 2.0**-24


def _mixed(bits: Tensor) -> Tensor:
    """Return the 64 bits well mixed; products wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _FACTOR_1
    bits = (bits ^ _shifted(bits, 27)) * _FACTOR_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Return int64 shifted to the right, filled up with zeros."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
