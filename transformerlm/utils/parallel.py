"""Map a function over a stream, in order and in bounded memory, by threads or by worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from transformerlm.utils.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items in flight per worker: one in work, one waiting, so that no worker idles


def worker_count(requested: int | None) -> int:
    """Return `requested`, or one worker a core that this process may use if it is 0 or None."""
    if requested:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_thread_map(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items, computed by threads.

    For functions that release the GIL. One thread is this one. Items are taken as they are needed.
    """
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool, function, items, threads)


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # after the last item there is nothing to cancel
        pool.shutdown(wait=False, cancel_futures=True)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    `function` and the items must be picklable. The processes are spawned, not forked: a fork of a process with
    threads, as torch has, may hang. They leave Ctrl-C to this process, which ends them.
    Raises `WorkerError` if a process ends early.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_initialize, initargs=(initializer, initargs)
    ) as pool:
        try:
            yield from _in_order(pool, function, items, workers)
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process ended early, for want of memory or because the script that calls this has no "
                '`if __name__ == "__main__":`; add it, or use one worker'
            ) from error


def _initialize(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps: nobody waits for its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
