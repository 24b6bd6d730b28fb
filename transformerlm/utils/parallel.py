"""Map a function over a stream in bounded memory, by threads or by the tasks of any executor."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from itertools import islice
from typing import TypeVar

from transformerlm.utils.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items in flight per worker: one running, one queued, so that no worker is idle
_TICK_SECONDS = 0.25


def worker_count(requested: int | None) -> int:
    """Return `requested`; if it is 0 or None, the number of cores this process may use."""
    if requested:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_thread_map(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items, computed by threads.

    For functions that release the GIL. With `threads=1`, the calling thread computes them. Items are read lazily.
    """
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # cancels the remaining items if the caller stops early
            pool.shutdown(wait=False, cancel_futures=True)


def finished_tasks(
    executor: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    slots: int,
    on_tick: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order of completion, computed by tasks of `executor`.

    `slots` is the number of tasks the executor runs at a time; about twice that number are in flight. `on_tick` is
    called a few times per second. If the executor uses other processes, the function, items and results must be
    picklable. The first error is raised and cancels the tasks that have not started. Raises `WorkerError` if a worker
    dies.
    """
    waiting: set[Future[Result]] = set()
    items = iter(items)
    try:
        while True:
            waiting.update(executor.submit(function, item) for item in islice(items, _AHEAD * slots - len(waiting)))
            if not waiting:
                return
            done, waiting = wait(waiting, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
            if on_tick is not None:
                on_tick()
            for future in done:
                yield future.result()
    except _lost_worker_errors() as error:
        raise WorkerError(
            "a worker process died: it ran out of memory, or the calling script has no "
            '`if __name__ == "__main__":`; add it, or use fewer workers'
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _lost_worker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that executors raise for a dead worker; Dask has its own class."""
    killed = getattr(sys.modules.get("distributed"), "KilledWorker", None)
    return (BrokenExecutor, CancelledError, *([killed] if killed else []))
