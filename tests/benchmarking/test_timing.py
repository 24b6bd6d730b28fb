import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarking.timing import percentile, percentiles, repeat, seconds, spread

NUMBERS = st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=50)


@given(NUMBERS, st.floats(min_value=0, max_value=100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_spread_is_median_and_range() -> None:
    assert spread("x.ms", [5.0, 1.0, 2.0, 4.0]) == {"x.ms.median": 3.0, "x.ms.min": 1.0, "x.ms.max": 5.0}


def test_percentiles_ascend() -> None:
    assert percentiles("x", list(range(101))) == {"x.p50": 50, "x.p90": 90, "x.p99": 99}


def test_seconds_measures_the_call() -> None:
    assert seconds(lambda: time.sleep(0.01)) >= 0.01


def test_repeat_takes_turns_and_leaves_the_warm_up_out() -> None:
    calls: list[str] = []
    shares: list[float] = []
    timings = repeat(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        warmup=1,
        repeats=2,
        before=lambda: calls.append("|"),
        report=lambda share, _words: shares.append(share),
    )
    assert "".join(calls) == "|ab|ab|ab"
    assert {name: len(values) for name, values in timings.items()} == {"a": 2, "b": 2}
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
