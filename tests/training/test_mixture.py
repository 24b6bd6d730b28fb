"""Slots of a run go to data sets by exact quotas, each in its own order, whatever the rest does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.training.mixture import PERIOD, Mixture, quotas
from transformerlm.utils.errors import ConfigError

WEIGHTS = st.lists(st.floats(0.1, 100), min_size=1, max_size=6)


@given(weights=WEIGHTS)
def test_quotas_share_a_period_by_weight(weights: list[float]) -> None:
    found = np.array(quotas(weights))
    assert found.sum() == PERIOD
    assert (np.abs(found - np.array(weights) / sum(weights) * PERIOD) < 1).all()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1], [10_000]),
        ([0.7, 0.3], [7000, 3000]),
        ([7, 3], [7000, 3000]),
        ([1, 1, 1], [3334, 3333, 3333]),
        ([0.1, 0.2, 0.7], [1000, 2000, 7000]),
        ([1e308, 1e308], [5000, 5000]),
        ([9999, 1], [9999, 1]),
    ],
)
def test_quotas_of_simple_weights_are_exact(weights: list[float], expected: list[int]) -> None:
    assert list(quotas(weights)) == expected


def test_a_data_set_that_would_never_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.train_weights: file 2 of data.train would be given none of 10,000"):
        Mixture([1, 1e-9, 1], seed=0)


@given(weights=WEIGHTS, seed=st.integers(0, 2**63 - 1), periods=st.integers(1, 3))
def test_after_every_period_each_data_set_has_had_its_quota(weights: list[float], seed: int, periods: int) -> None:
    mixture = Mixture(weights, seed=seed)
    sources, _ = mixture.assign(np.arange(periods * PERIOD))
    counts = [np.bincount(period, minlength=len(weights)).tolist() for period in sources.reshape(periods, PERIOD)]
    assert counts == [list(mixture.quotas)] * periods


@given(weights=WEIGHTS, seed=st.integers(0, 1000), slots=st.integers(1, 2 * PERIOD + 7))
def test_the_uses_of_a_data_set_count_on_without_a_gap(weights: list[float], seed: int, slots: int) -> None:
    sources, uses = Mixture(weights, seed=seed).assign(np.arange(slots))
    for number in range(len(weights)):
        mine = uses[sources == number]
        assert np.array_equal(mine, np.arange(len(mine)))


@settings(max_examples=20)
@given(weights=WEIGHTS, slots=st.lists(st.integers(0, 2**40), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_a_slot_does_not_depend_on_others(weights: list[float], slots: list[int], seed: int) -> None:
    mixture = Mixture(weights, seed=seed)
    together = mixture.assign(np.array(slots))
    for place, slot in enumerate(slots):
        alone = Mixture(weights, seed=seed).assign(np.array([slot]))
        assert [found[place] for found in together] == [found[0] for found in alone]


def test_periods_and_seeds_have_orders_of_their_own_that_mix() -> None:
    sources = [Mixture([1, 1], seed=seed).assign(np.arange(2 * PERIOD))[0] for seed in (0, 1)]
    orders = [*sources[0].reshape(2, PERIOD), sources[1][:PERIOD]]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(orders[one] == orders[other]) == pytest.approx(0.5, abs=0.03)
    for order in orders:
        assert np.mean(order[1:] == order[:-1]) == pytest.approx(0.5, abs=0.03)
