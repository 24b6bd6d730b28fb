"""Work on threads and by tasks comes back whole, little is begun ahead, and errors come with it."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from transformerlm.utils.errors import WorkerError
from transformerlm.utils.parallel import finished_tasks, ordered_thread_map, worker_count


def _slow_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0.0)
    return number


def _fails_at_two(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return number


def _ends_the_process(_number: int) -> None:
    os._exit(1)


def test_one_worker_a_core_unless_said() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) == worker_count(None) >= 1
    assert worker_count(0) <= (os.cpu_count() or 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_keep_the_order_and_read_little_ahead(threads: int) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    results = ordered_thread_map(_slow_first, items(), threads=threads)
    assert next(results) == 0
    assert len(read) <= 4
    assert list(results) == list(range(1, 20))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_on_a_thread_reaches_the_caller(threads: int) -> None:
    results = ordered_thread_map(_fails_at_two, range(10), threads=threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


@pytest.mark.timeout(60)
def test_tasks_come_as_they_are_finished_and_little_is_begun_ahead() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    ticks: list[int] = []
    with ThreadPoolExecutor(2) as executor:
        results = finished_tasks(executor, _slow_first, items(), slots=2, on_tick=lambda: ticks.append(1))
        first = next(results)
        assert first != 0
        assert len(begun) <= 4
        assert sorted([first, *results]) == list(range(20))
    assert ticks


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_error_of_a_task_ends_all(kind: type[Executor]) -> None:
    with kind(2) as executor, pytest.raises(ValueError, match="two"):  # pyright: ignore[reportCallIssue]
        list(finished_tasks(executor, _fails_at_two, iter(range(10**9)), slots=2))


@pytest.mark.timeout(60)
def test_a_worker_that_is_gone_is_said() -> None:
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(WorkerError, match="a worker process died"),
    ):
        list(finished_tasks(executor, _ends_the_process, range(3), slots=1))


@pytest.mark.timeout(60)
def test_a_caller_may_stop_early() -> None:
    with ThreadPoolExecutor(1) as executor:
        results = finished_tasks(executor, abs, iter(range(10**9)), slots=1)
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
