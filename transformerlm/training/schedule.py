"""The learning rate as a function of the step."""

import math

from transformerlm.utils.errors import ConfigError


def lr_cosine_schedule(
    it: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_iters: int,
    cosine_cycle_iters: int,
) -> float:
    """Return the learning rate of step `it`, counted from 0: linear warm-up, then half a cosine, then flat.

    It rises from 0 to `max_learning_rate` over the first `warmup_iters` steps, falls along a cosine to
    `min_learning_rate` at step `cosine_cycle_iters`, and stays there (Loshchilov & Hutter 2017, SGDR,
    eq. 5, without restarts; warm-up as in Touvron et al. 2023, LLaMA, section 2.3).

    Raises `ConfigError` if the steps are negative or the warm-up is longer than the cycle.
    """
    if not 0 <= warmup_iters <= cosine_cycle_iters:
        raise ConfigError(
            f"the warm-up must fit into the cosine cycle (got warmup_iters {warmup_iters}, "
            f"cosine_cycle_iters {cosine_cycle_iters})"
        )
    if it < 0:
        raise ConfigError(f"the step must not be negative (got {it})")
    if it < warmup_iters:
        return it / warmup_iters * max_learning_rate
    if it >= cosine_cycle_iters:
        return min_learning_rate
    progress = (it - warmup_iters) / (cosine_cycle_iters - warmup_iters)
    return min_learning_rate + (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
