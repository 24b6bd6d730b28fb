"""The learning-rate schedule: its corners by hand, its shape as laws."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.hparams import ScheduleHparams
from transformerlm.training.schedule import learning_rate, lr_cosine_schedule, lr_wsd_schedule
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


@pytest.mark.parametrize(
    ("it", "expected"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (29, 1.0), (30, 1.0), (35, 0.55), (39, 0.19), (40, 0.1), (41, 0.1)],
)
def test_wsd_values_by_hand(it: int, expected: float) -> None:
    assert lr_wsd_schedule(it, 1.0, 0.1, 10, 10, 40) == pytest.approx(expected, rel=1e-12)


@given(warmup=st.integers(0, 30), stable=st.integers(0, 30), decay=st.integers(0, 30), low=st.floats(0, 1))
def test_wsd_rises_stays_falls_and_stays(warmup: int, stable: int, decay: int, low: float) -> None:
    total = warmup + stable + decay
    rates = [lr_wsd_schedule(it, 1.0, low, warmup, decay, total) for it in range(total + 3)]
    assert rates[:warmup] == [it / warmup for it in range(warmup)]
    assert rates[warmup : warmup + stable] == [1.0] * stable
    assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
    differences = [a - b for a, b in itertools.pairwise(rates[warmup + stable : total + 1])]
    assert differences == pytest.approx([(1 - low) / decay if decay else 0.0] * decay)
    assert rates[total:] == [low] * 3


@pytest.mark.parametrize(
    ("it", "warmup", "decay", "total"), [(0, 6, 5, 10), (0, -1, 5, 10), (0, 0, -1, 10), (-1, 0, 0, 10)]
)
def test_impossible_wsd_settings_are_refused(it: int, warmup: int, decay: int, total: int) -> None:
    with pytest.raises(ConfigError):
        lr_wsd_schedule(it, 1.0, 0.1, warmup, decay, total)


def rates(schedule: ScheduleHparams, steps: int) -> list[float]:
    return [learning_rate(step, schedule, steps) for step in range(1, steps + 1)]


def test_the_settings_choose_the_schedule() -> None:
    shared = {"max_learning_rate": 1.0, "min_learning_rate": 0.0, "warmup_iters": 10}
    cosine, wsd = ScheduleHparams(**shared), ScheduleHparams(name="wsd", decay_fraction=0.25, **shared)
    assert rates(cosine, 40) == [lr_cosine_schedule(it, 1.0, 0.0, 10, 40) for it in range(1, 41)]
    assert rates(wsd, 40) == [lr_wsd_schedule(it, 1.0, 0.0, 10, 10, 40) for it in range(1, 41)]
    ends_early = ScheduleHparams(cosine_cycle_iters=20, **shared)
    assert rates(ends_early, 40)[19:] == [0.0] * 21


def test_in_a_short_run_the_decay_begins_when_the_warmup_is_over() -> None:
    wsd = ScheduleHparams(name="wsd", max_learning_rate=1.0, min_learning_rate=0.0, warmup_iters=10, decay_fraction=0.9)
    assert rates(wsd, 20) == [lr_wsd_schedule(it, 1.0, 0.0, 10, 10, 20) for it in range(1, 21)]
    assert rates(wsd, 10) == [lr_wsd_schedule(it, 1.0, 0.0, 10, 0, 10) for it in range(1, 11)]


def test_a_longer_wsd_run_takes_the_same_steps_until_the_shorter_one_decays() -> None:
    wsd = ScheduleHparams(name="wsd", max_learning_rate=1.0, min_learning_rate=0.0, decay_fraction=0.2)
    short, long = rates(wsd, 1000), rates(wsd, 3000)
    assert short[:800] == long[:800]
    assert short[-1] == long[-1] == 0.0
    assert set(long[99:2400]) == {1.0}
