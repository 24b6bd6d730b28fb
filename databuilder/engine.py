"""Executors for the tasks of a build: threads of this process, or a Dask cluster."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from transformerlm.utils.errors import ConfigError, MissingDependencyError
from transformerlm.utils.parallel import worker_count

if TYPE_CHECKING:
    from distributed import Client

Engine = Literal["local", "dask"]

CONNECT_SECONDS = 20


@contextmanager
def open_executor(
    engine: Engine = "local", workers: int = 0, scheduler_address: str | None = None
) -> Iterator[Executor]:
    """Yield an executor with `workers` threads (0: one per core), or the executor of a Dask cluster.

    With `scheduler_address`, the cluster of that scheduler is used and left running; without, a cluster of `workers`
    processes on this machine is started, and ends with the context. Raises `MissingDependencyError` if Dask is not
    installed, `ConfigError` if no scheduler answers.
    """
    if engine == "local":
        with ThreadPoolExecutor(worker_count(workers)) as executor:
            yield executor
        return
    with _dask_client(workers, scheduler_address) as client:
        # Not pure: a task writes a file, and must write it again when it is submitted again.
        yield client.get_executor(pure=False)


def task_slots(executor: Executor, workers: int = 0) -> int:
    """Return how many tasks an executor runs at a time: `workers`, or if 0, one per core of the cluster or machine."""
    client: Any = getattr(executor, "_client", None)  # Dask's executor has no public way to ask
    if workers or client is None:
        return worker_count(workers)
    return max(1, sum(client.nthreads().values()))


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Restore the environment at the end: Dask sets variables for its workers to inherit, and does not unset them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _dask_client(workers: int, scheduler_address: str | None) -> "Iterator[Client]":
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingDependencyError("a Dask cluster needs the extra `dask`: uv sync --extra dask") from None
    if scheduler_address is None:
        here: dict[str, Any] = {"dashboard_address": None}  # no dashboard
        with (
            unchanged_environment(),
            LocalCluster(n_workers=worker_count(workers), threads_per_worker=1, **here) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler_address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{scheduler_address}: no Dask scheduler answers there ({error}); start one with `dask scheduler`"
        ) from None
    with client:
        yield client
