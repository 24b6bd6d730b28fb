"""The learning-rate schedule: its corners by hand, its shape as laws."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.training.schedule import lr_cosine_schedule
from transformerlm.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("it", "expected"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (20, 0.1 + 0.9 * 0.75), (25, 0.55), (40, 0.1), (41, 0.1), (10**9, 0.1)],
)
def test_values_by_hand(it: int, expected: float) -> None:
    assert lr_cosine_schedule(it, 1.0, 0.1, 10, 40) == pytest.approx(expected, rel=1e-12)


@given(warmup=st.integers(0, 50), rest=st.integers(0, 50), low=st.floats(0, 1), span=st.floats(0, 1))
def test_rises_falls_and_stays(warmup: int, rest: int, low: float, span: float) -> None:
    cycle, high = warmup + rest, low + span
    rates = [lr_cosine_schedule(it, high, low, warmup, cycle) for it in range(cycle + 3)]
    tolerance = 1e-12
    assert all(-tolerance <= rate <= high + tolerance for rate in rates)
    assert all(a <= b + tolerance for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b - tolerance for a, b in itertools.pairwise(rates[warmup:]))
    if rest:
        assert rates[warmup] == pytest.approx(high)
    assert rates[cycle:] == [low] * 3


def test_no_warm_up_starts_at_the_maximum() -> None:
    assert lr_cosine_schedule(0, 1.0, 0.0, 0, 10) == 1.0


def test_a_cycle_of_warm_up_alone_ends_at_the_minimum() -> None:
    assert lr_cosine_schedule(10, 1.0, 0.1, 10, 10) == 0.1


@pytest.mark.parametrize(("it", "warmup", "cycle"), [(0, 11, 10), (0, -1, 10), (-1, 0, 10)])
def test_impossible_settings_are_refused(it: int, warmup: int, cycle: int) -> None:
    with pytest.raises(ConfigError):
        lr_cosine_schedule(it, 1.0, 0.1, warmup, cycle)
