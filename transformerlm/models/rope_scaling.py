"""Slower rotary positions, for contexts longer than in the original training.

Shapes: P rotated pairs.
"""

import math

import torch
from torch import Tensor

from transformerlm.hparams import ModelHparams


def scaled_frequencies(plain_P: Tensor, settings: ModelHparams) -> Tensor:
    """Return the frequencies (P,), in radians per position, after `settings.rope_scaling`.

    `linear` divides all by `rope_factor` (Chen et al. 2023, "Extending Context Window … via Positional Interpolation",
    eq. 4). For `llama3` see `slowed_in_parts`.
    """
    factor = settings.rope_factor
    low, high, context = (
        settings.rope_low_freq_factor,
        settings.rope_high_freq_factor,
        settings.rope_original_context,
    )
    if factor is None:
        return plain_P
    if low is None or high is None or context is None:
        return plain_P / factor
    return slowed_in_parts(plain_P, factor, low, high, context)


def slowed_in_parts(
    plain_P: Tensor, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int
) -> Tensor:
    """Return Llama 3.1's frequencies.

    A pair with frequency f turns c = original_context · f / 2π times in the original context. A fast pair
    (c ≥ high_freq_factor) distinguishes neighbours and does not change; a slow pair (c ≤ low_freq_factor) is slowed to
    f / factor; in between, the frequency is a linear mix of the two:

        s = (c − low_freq_factor) / (high_freq_factor − low_freq_factor),   f ← (1 − s) · f / factor + s · f

    Source: `apply_scaling` in Meta's code of Llama 3.1 (github.com/meta-llama/llama-models, models/llama3/model.py),
    for the models in Dubey et al. 2024, "The Llama 3 Herd of Models".
    """
    turns_P = original_context * plain_P / (2 * math.pi)
    share_P = ((turns_P - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    mixed_P = (1 - share_P) * plain_P / factor + share_P * plain_P
    return torch.where(share_P < 1, mixed_P, plain_P)
