"""Work in other processes comes back in order, and its errors with it."""

import os
import time
from collections.abc import Iterator

import pytest

from transformerlm.utils.parallel import ordered_map, worker_count

_offset = 0


def _set_offset(value: int) -> None:
    global _offset
    _offset = value


def _slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0.0)
    return number + _offset


def _fails_at_two(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return number


def test_one_worker_a_core_unless_said() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) == worker_count(None) >= 1
    assert worker_count(0) <= (os.cpu_count() or 1)


@pytest.mark.timeout(60)
def test_results_keep_the_order_and_little_is_read_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    results = ordered_map(_slow_first, items(), workers=2, initializer=_set_offset, initargs=(100,))
    assert next(results) == 100
    assert len(read) <= 4
    assert list(results) == list(range(101, 120))


@pytest.mark.timeout(60)
def test_an_error_in_a_worker_reaches_the_caller() -> None:
    results = ordered_map(_fails_at_two, range(10), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


@pytest.mark.timeout(60)
def test_a_caller_may_stop_early() -> None:
    results = ordered_map(abs, iter(range(1_000_000)), workers=1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
