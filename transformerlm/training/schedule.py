"""The learning rate as a function of the step."""

import math

from transformerlm.hparams import ScheduleHparams
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


def lr_wsd_schedule(
    it: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_iters: int,
    decay_iters: int,
    total_iters: int,
) -> float:
    """Return the learning rate of step `it`, counted from 0: warm-up, stable, then a linear decay, then flat.

    It rises from 0 to `max_learning_rate` over the first `warmup_iters` steps, stays there, and falls linearly over the
    last `decay_iters` of `total_iters` steps to `min_learning_rate` (Hu et al. 2024, MiniCPM, section 4; linear, as in
    Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", section 3).
    Before the decay the rate does not depend on `total_iters`.

    Raises `ConfigError` if the steps are negative or the warm-up and the decay do not fit into the total.
    """
    if warmup_iters < 0 or decay_iters < 0 or warmup_iters + decay_iters > total_iters:
        raise ConfigError(
            f"warm-up and decay must fit into the total (got warmup_iters {warmup_iters}, decay_iters {decay_iters}, "
            f"total_iters {total_iters})"
        )
    if it < 0:
        raise ConfigError(f"the step must not be negative (got {it})")
    if it < warmup_iters:
        return it / warmup_iters * max_learning_rate
    if it >= total_iters:
        return min_learning_rate
    remaining = min(1.0, (total_iters - it) / max(1, decay_iters))
    return min_learning_rate + (max_learning_rate - min_learning_rate) * remaining


def learning_rate(step: int, schedule: ScheduleHparams, steps: int) -> float:
    """Return the learning rate of a step of a run of `steps` steps. Steps count from 1, so the first rate is not 0.

    It depends only on the arguments, so a resumed run follows the present settings. If a run is lengthened, a cosine
    rises to the curve of the longer run. A wsd schedule does not change if its decay has not begun, and else rises to
    the stable rate: lengthen such a run from a checkpoint before the decay.
    """
    high, low, warmup = schedule.max_learning_rate, schedule.min_learning_rate, schedule.warmup_iters
    if schedule.name == "wsd":
        return lr_wsd_schedule(step, high, low, warmup, schedule.decay_iters(steps), steps)
    return lr_cosine_schedule(step, high, low, warmup, schedule.cosine_cycle_iters or steps)
