"""Choose the data set of each window of a run by weight, as a pure function of (seed, slot).

    slot        0 1 2 3 4 5 6 7 8 9 │ 10 …       slot = step · batch size + row
    data set    a b a a c a b a a b │ b a …      a period: each data set has its quota of slots, in seeded order
    use         0 0 1 2 0 3 1 4 5 2 │ 3 6 …      how often the data set was used before: counts on without a gap

So each period contains exactly the share of each data set, and the windows of a data set have the same order as
when it is used alone.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transformerlm.training.permutation import permuted
from transformerlm.utils.errors import ConfigError

PERIOD = 10_000

Numbers = npt.NDArray[np.int64]


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of `PERIOD` slots each of the positive `weights` gets, by the method of largest remainders.

    Raises `ConfigError` if a weight gets no slot.
    """
    relative = [weight / max(weights) for weight in weights]  # the sum of large weights could overflow
    exact = np.array(relative) / math.fsum(relative) * PERIOD
    found = np.floor(exact).astype(np.int64)
    largest = np.argsort(found - exact, kind="stable")  # stable: ties go to the first
    found[largest[: PERIOD - found.sum()]] += 1
    for number, quota in enumerate(found):
        if quota == 0:
            raise ConfigError(
                f"data.train_weights: file {number + 1} of data.train would be given none of {PERIOD:,} windows "
                f"(its weight is {weights[number]:g}, the largest {max(weights):g}); raise it, or leave the file out"
            )
    return tuple(found.tolist())


class Mixture:
    """Assigns the slots of a run to data sets."""

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        """Raises `ConfigError` for a weight that is too small relative to the others."""
        self.quotas = quotas(weights)
        self.seed = seed

    def assign(self, slots: Numbers) -> tuple[Numbers, Numbers]:
        """Return, for each slot, the index of its data set and how often that data set was used before."""
        periods, places = np.divmod(slots, PERIOD)
        sources, uses = np.empty_like(slots), np.empty_like(slots)
        for period in np.unique(periods):
            chosen = periods == period
            pattern = _pattern(self.quotas, self.seed, int(period))
            sources[chosen] = pattern.sources[places[chosen]]
            uses[chosen] = pattern.uses[places[chosen]]
        return sources, uses + periods * np.array(self.quotas)[sources]


class _Pattern(NamedTuple):
    sources: Numbers
    uses: Numbers
    """Within the period."""


@functools.lru_cache(maxsize=2)  # a batch may span two periods; the next batch starts in the second
def _pattern(quotas: tuple[int, ...], seed: int, period: int) -> _Pattern:
    # The seeds of the data sets' own orders end in the data set's index; the extra 1 makes this seed different.
    order = permuted(np.arange(PERIOD), PERIOD, seed=(seed, period, 0, 1))
    ends = np.cumsum(quotas)
    sources = np.searchsorted(ends, order, side="right")
    by_source = np.argsort(sources, kind="stable")
    uses = np.empty(PERIOD, dtype=np.int64)
    uses[by_source] = np.arange(PERIOD) - (ends - quotas)[sources[by_source]]
    return _Pattern(sources, uses)
