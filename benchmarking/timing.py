"""Clocks and their statistics: repeated timings, median and range, percentiles."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def seconds(action: Callable[[], object]) -> float:
    """Return how long one call of `action` takes, in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def repeat(
    actions: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    repeats: int,
    before: Callable[[], object] = lambda: None,
    report: Callable[[float, str], None] = lambda _share, _words: None,
) -> dict[str, list[float]]:
    """Return the seconds of `repeats` calls of each action, after `warmup` calls that are not counted.

    The actions take turns within a repeat, so that a busy moment of the machine meets all of them. `before`
    prepares each repeat and is not timed; `report` is told the share done and the run.
    """
    timings: dict[str, list[float]] = {name: [] for name in actions}
    runs = warmup + repeats
    for run in range(runs):
        before()
        for name, action in actions.items():
            timings[name].append(seconds(action))
        report((run + 1) / runs, f"run {run + 1} of {runs}")
    return {name: values[warmup:] for name, values in timings.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` (0 to 100) of `values` lie, interpolated linearly.

    Definition 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996): numpy's default.
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return median and range of `values` as the entries `name.median`, `name.min` and `name.max`."""
    return {
        f"{name}.median": statistics.median(values),
        f"{name}.min": min(values),
        f"{name}.max": max(values),
    }


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the entries `name.p50`, `name.p90` and `name.p99` of `values`."""
    return {f"{name}.p{percent}": percentile(values, percent) for percent in (50, 90, 99)}
