"""Slower rotary positions, for contexts longer than those of a model's first training.

Shapes: P rotated pairs.
"""

import math

import torch
from torch import Tensor

from transformerlm.hparams import ROPE_SCALING_NUMBERS, RopeScaling
from transformerlm.utils.errors import ConfigError


def scaled_frequencies(
    plain_P: Tensor,
    scaling: RopeScaling | None,
    *,
    factor: float | None = None,
    low_freq_factor: float | None = None,
    high_freq_factor: float | None = None,
    original_context: int | None = None,
) -> Tensor:
    """Return the frequencies (P,), in radians a position, for those of a plain rotary embedding.

    `linear` divides all by `factor` (Chen et al. 2023, "Extending Context Window … via Positional Interpolation",
    eq. 4). `llama3` is that of `slowed_in_parts`. Raises `ConfigError` for numbers out of range, missing, or given with
    a scaling that has none.
    """
    check_scaling(
        scaling,
        factor=factor,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_context=original_context,
    )
    if factor is None:
        return plain_P
    if low_freq_factor is None or high_freq_factor is None or original_context is None:
        return plain_P / factor
    return slowed_in_parts(plain_P, factor, low_freq_factor, high_freq_factor, original_context)


def slowed_in_parts(
    plain_P: Tensor, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int
) -> Tensor:
    """Return Llama 3.1's frequencies.

    A pair with frequency f turns c = original_context · f / 2π times in the context of the first training. One that
    turns often (c ≥ high_freq_factor) tells neighbours apart and stays; one that turns seldom (c ≤ low_freq_factor) is
    slowed to f / factor; between the two the share of f in their mix rises linearly:

        s = (c − low_freq_factor) / (high_freq_factor − low_freq_factor),   f ← (1 − s) · f / factor + s · f

    Source: `apply_scaling` in Meta's code of Llama 3.1 (github.com/meta-llama/llama-models, models/llama3/model.py),
    of the models in Dubey et al. 2024, "The Llama 3 Herd of Models".
    """
    turns_P = original_context * plain_P / (2 * math.pi)
    share_P = ((turns_P - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    mixed_P = (1 - share_P) * plain_P / factor + share_P * plain_P
    return torch.where(share_P < 1, mixed_P, plain_P)


def check_scaling(scaling: RopeScaling | None, **numbers: float | None) -> None:
    """Raise `ConfigError` unless each of the numbers is given that `scaling` has, no other, and all in range."""
    if scaling is not None and scaling not in ROPE_SCALING_NUMBERS:
        raise ConfigError(f"rotary scaling must be one of {', '.join(ROPE_SCALING_NUMBERS)} (got {scaling!r})")
    needed = () if scaling is None else ROPE_SCALING_NUMBERS[scaling]
    for name, value in numbers.items():
        if (name in needed) != (value is not None):
            wanted = "needs a number" if name in needed else "must be unset"
            raise ConfigError(f"{name} {wanted} with rotary scaling {scaling} (got {value})")
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} of rotary scaling must be positive (got {value})")
    if scaling is not None and not (factor := numbers["factor"] or 0) >= 1:
        raise ConfigError(f"factor of rotary scaling must be at least 1 (got {factor})")
    if scaling == "llama3":
        low, high = numbers["low_freq_factor"] or 0, numbers["high_freq_factor"] or 0
        if low >= high:
            raise ConfigError(
                f"low_freq_factor must be below high_freq_factor (got {low} and {high}); 1 and 4 are usual"
            )
