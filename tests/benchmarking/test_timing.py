import time

import pytest

from benchmarking.runner import CellError, measure_calls, percentiles, seconds, spread, take_turns


def test_spread_is_median_and_range() -> None:
    assert spread("x.ms", [5.0, 1.0, 2.0, 4.0]) == {"x.ms.median": 3.0, "x.ms.min": 1.0, "x.ms.max": 5.0}


def test_percentiles_ascend() -> None:
    assert percentiles("x", list(range(101))) == {"x.p50": 50, "x.p90": 90, "x.p99": 99}


def test_seconds_measures_the_call() -> None:
    assert seconds(lambda: time.sleep(0.01)) >= 0.01


def test_percentiles_of_one_value_are_that_value() -> None:
    assert percentiles("x", [3.0]) == {"x.p50": 3, "x.p90": 3, "x.p99": 3}


def test_measured_calls_keep_the_last_result_and_the_memory() -> None:
    results = iter("ab")
    measured, result = measure_calls(lambda: next(results))
    assert result == "b"
    assert list(measured["seconds"]) == ["cold", "warm"]
    assert measured["peak_memory_bytes"] >= measured["memory_before_bytes"] > 1e6


def test_tools_take_turns_and_one_that_fails_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def run(tool: str, repeat: int) -> dict[str, object]:
        calls.append(f"{tool}{repeat}")
        if tool == "b":
            raise CellError("timeout")
        return {"same": tool != "c", "seconds": repeat}

    outcomes = take_turns("row", "abc", 2, run)
    assert calls == ["a0", "b0", "c0", "a1"]
    assert {tool: outcome.status for tool, outcome in outcomes.items()} == {"a": "ok", "b": "timeout", "c": "other ids"}
    assert outcomes["a"].values("seconds") == [0, 1]
    assert capsys.readouterr().err.splitlines() == ["row: b: timeout", "row: c: other ids"]
