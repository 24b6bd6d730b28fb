"""Sampling for the rows of a batch at once, each with settings and a seed of its own.

    logits ──penalty of tokens that were there──▶ ÷ temperature ──exp──▶ weights ──top-k, min-p──▶ weights
    weights ──a number u in [0, 1)──▶ the token at which their running sum passes u times their total

Top-p sorts nothing: a token is drawn from all and kept if the tokens before it have less than p of the total; else
another one is drawn, from those before it, all others being outside as well. (Before it are the likelier ones, and of
those as likely the ones with a lower id.) What is kept is distributed as if it had been drawn from the nucleus, and
mostly it is the first one.

The numbers u are hashes of the row's seed and of how many tokens it has drawn: so what a row draws does not depend on
the rows beside it, nor on when it came. There is no loop over rows, and nothing waits for the device but top-p's
question whether all rows have their token.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.sampling import is_greedy
from transformerlm.utils.dtypes import at_least_float32

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
        drawn = [SamplingHparams(temperature=1, top_p=1) if one else row for one, row in zip(greedy, rows, strict=True)]
        self._greedy_B = torch.tensor(greedy, device=device) if any(greedy) else None
        self._are_all_greedy = all(greedy)
        self._temperature_B1 = _column([row.temperature for row in drawn], device)
        self._seeds_B1 = _column([row.seed for row in rows], device)
        self._penalty_B1 = _column([row.repetition_penalty for row in rows], device)
        self.penalizes = any(row.repetition_penalty != 1 for row in rows)
        """Whether `draw` wants to know the tokens that were there."""
        self._largest_top_k = max(row.top_k or 0 for row in drawn)
        self._top_k_B1 = _column([row.top_k or 0 for row in drawn], device)
        self._min_p_B1 = _column([row.min_p for row in drawn], device) if any(row.min_p for row in drawn) else None
        top_p = [row.top_p if row.top_p < 1 else float("inf") for row in drawn]
        self._top_p_B1 = _column(top_p, device) if any(row.top_p < 1 for row in drawn) else None
        self._ids_V: Tensor | None = None  # 0, 1, …, made with the first draw that needs them

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
        if self._are_all_greedy:
            return logits_BV.argmax(dim=-1)
        weights_BV = ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / self._temperature_B1).exp_()
        drawn_B = self._draw_filtered(weights_BV, numbers_B.unsqueeze(1)).squeeze(1)
        return drawn_B if self._greedy_B is None else torch.where(self._greedy_B, logits_BV.argmax(dim=-1), drawn_B)

    def _draw_filtered(self, weights_BV: Tensor, numbers_B1: Tensor) -> Tensor:
        """Return a token (B, 1) for weights of which the largest is 1."""
        if self._largest_top_k:
            weights_BV = self._among_top_k(weights_BV)
        # top_p is a share of what top_k leaves, whatever min_p takes
        limit_B1 = None if self._top_p_B1 is None else self._top_p_B1 * weights_BV.sum(dim=-1, keepdim=True)
        if self._min_p_B1 is not None:
            weights_BV = weights_BV.masked_fill(weights_BV < self._min_p_B1, 0)
        drawn_B1 = invert(weights_BV, uniform_numbers(self._seeds_B1, numbers_B1))
        if limit_B1 is None:
            return drawn_B1
        if self._ids_V is None:
            self._ids_V = torch.arange(weights_BV.shape[-1], device=weights_BV.device)
        attempt = 0
        while True:
            weight_B1 = weights_BV.gather(1, drawn_B1)
            is_before_BV = (weights_BV > weight_B1) | ((weights_BV == weight_B1) & (self._ids_V < drawn_B1))
            before_BV = torch.where(is_before_BV, weights_BV, 0.0)
            before_B1 = before_BV.sum(dim=-1, keepdim=True)
            # the first one stays even where the limit is too small a number for the type, and rounded to 0
            outside_B1 = (before_B1 >= limit_B1) & (before_B1 > 0)
            if not outside_B1.any():
                return drawn_B1
            attempt += 1
            again_B1 = invert(before_BV, uniform_numbers(self._seeds_B1, numbers_B1, attempt))
            drawn_B1 = torch.where(outside_B1, again_B1, drawn_B1)
            weights_BV = torch.where(outside_B1, before_BV, weights_BV)

    def _among_top_k(self, weights_BV: Tensor) -> Tensor:
        """Drop what is below the k-th largest weight of each row that has such a limit."""
        top_k_B1 = self._top_k_B1.clamp(max=weights_BV.shape[-1])
        largest_BK = weights_BV.topk(min(self._largest_top_k, weights_BV.shape[-1]), dim=-1).values
        smallest_B1 = largest_BK.gather(1, (top_k_B1 - 1).clamp(min=0))
        return weights_BV.masked_fill((weights_BV < smallest_B1) & (top_k_B1 > 0), 0)


def _column(values: Sequence[float] | Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).unsqueeze(1)


def penalized(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Return logits in which those of tokens seen are divided by the penalty, or, if negative, multiplied by it.

    The repetition penalty of Keskar et al. 2019 (CTRL, section 4.1), with the sign regarded as everybody does since.
    """
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def invert(weights_BC: Tensor, numbers_B1: Tensor) -> Tensor:
    """Return the place (B, 1) at which the running sum of a row passes a number in [0, 1) times its total.

    A place of weight 0 is never returned, unless all have it.
    """
    sums_BC = weights_BC.cumsum(dim=-1)
    if not weights_BC.is_cpu:  # a CPU adds in order, so that its sums grow by themselves
        sums_BC = increasing(sums_BC, weights_BC)
    total_B1 = sums_BC[:, -1:]
    below_total_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))  # products are rounded, perhaps up
    places_B1 = torch.searchsorted(sums_BC, torch.minimum(numbers_B1 * total_B1, below_total_B1), right=True)
    return places_B1.clamp(max=weights_BC.shape[-1] - 1)


def increasing(sums_BC: Tensor, weights_BC: Tensor) -> Tensor:
    """Return running sums that grow where the weight is positive, and nowhere else.

    On a GPU partial sums are added in parallel, and rounded: a later sum may be smaller, and one may grow at a weight
    of 0, whose token would then be sampled.
    """
    return sums_BC.masked_fill(weights_BC == 0, 0).cummax(dim=-1).values


def sampling_distribution(logits_V: Tensor, sampling: SamplingHparams, seen_V: Tensor | None = None) -> Tensor:
    """Return the probabilities (V,) with which `BatchSampler` draws each token under these settings.

    `seen_V` is True for tokens of prompt and continuation, needed for a repetition penalty.
    """
    logits_V = at_least_float32(logits_V)
    if seen_V is not None:
        penalty = logits_V.new_tensor(sampling.repetition_penalty)
        logits_V = penalized(logits_V, seen_V, penalty)
    if is_greedy(sampling.temperature, sampling.top_k, sampling.top_p):
        return torch.zeros_like(logits_V).scatter(0, logits_V.argmax(dim=-1, keepdim=True), 1.0)
    weights_V = ((logits_V - logits_V.max()) / sampling.temperature).exp()
    if sampling.top_k is not None:
        smallest = weights_V.topk(min(sampling.top_k, len(weights_V))).values[-1]
        weights_V = weights_V.masked_fill(weights_V < smallest, 0)
    limit = sampling.top_p * weights_V.sum() if sampling.top_p < 1 else float("inf")
    ordered_V, order_V = weights_V.masked_fill(weights_V < sampling.min_p, 0).sort(descending=True, stable=True)
    before_V = ordered_V.cumsum(dim=-1) - ordered_V
    outside_V = (before_V >= limit) & (before_V > 0)  # the first one stays even if the limit was rounded to 0
    kept_V = torch.zeros_like(weights_V).scatter(0, order_V, ordered_V.masked_fill(outside_V, 0))
    return kept_V / kept_V.sum()


def uniform_numbers(seeds: Tensor, numbers: Tensor, attempt: int = 0) -> Tensor:
    """Return float32 numbers in [0, 1) that depend on these alone (seeds and numbers: int64, of the same shape)."""
    bits = _mixed(_mixed(seeds) + numbers * _STEP)
    if attempt:
        bits = _mixed(bits + attempt)
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24


def _mixed(bits: Tensor) -> Tensor:
    """Return the 64 bits well mixed; products wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _FACTOR_1
    bits = (bits ^ _shifted(bits, 27)) * _FACTOR_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Return int64 shifted to the right, filled up with zeros."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
