"""Processes that train together: ranks and collective operations.

torchrun starts one process per device and sets its rank in the environment:

    torchrun --nproc-per-node=2 -m cli.train …
      ├─ RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 ─┐
      └─ RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 ─┴─ a process group: all-reduce, broadcast, barrier

Without torchrun, or with a single process, the world has size one: the same code runs without a process group.
"""

# pyright: reportPrivateImportUsage=false
# (PyTorch documents these functions, but does not list them as exported.)

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from transformerlm.utils.errors import ConfigError, PeerError, TransformerLMError

T = TypeVar("T")

_CPU = torch.device("cpu")
_SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process's rank in the group; all processes call its methods, in the same order."""

    rank: int = 0
    local_rank: int = 0
    """Rank among the processes of this machine."""
    size: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the main process, which logs, shows progress and owns the run folder."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.agree(0)

    def agree(self, value: int) -> int:
        """Return the largest `value` of all processes; communicates between CPUs, without a device sync."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def sum(self, value: float) -> float:
        """Return the sum of `value` over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared)
        return shared.item()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value`, a tensor on this world's device, over all processes, without a sync."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make()` in the first process; return its result, or raise its error, in all processes."""
        result: list[T | None] = [None]
        with self.together():
            if self.is_first:
                result[0] = make()
        if self.size > 1:
            dist.broadcast_object_list(result, src=0, device=torch.device("cpu"))
        return result[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Fail in every process if one of them raises a user error or an operating system error in the context.

        The other processes raise `PeerError`, instead of waiting for a process that has ended. The context must not
        wait for other processes itself.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except (TransformerLMError, OSError) as error:
            own = error
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, None if own is None else f"{own}")
        if own is not None:
            raise own
        for rank, message in enumerate(messages):
            if message is not None:
                raise PeerError(f"process {rank} failed: {message}")


def restarts() -> int:
    """Return how often torchrun has restarted this run's processes after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def end_process(code: int) -> NoReturn:
    """Exit a distributed process with this exit code, without interpreter teardown.

    DDP keeps the threads of its group until the process ends. One of them may still be releasing the last collective,
    for which it takes the interpreter's lock; a thread that requests the lock during interpreter teardown aborts the
    process ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def join_world(device: torch.device, *, timeout: timedelta) -> Iterator[World]:
    """Join the process group that torchrun started; leave it cleanly when the context ends.

    On CUDA each process uses the device of its local rank. `timeout` limits the wait for other processes, at the
    start and later.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device=device)
        return
    missing = [name for name in _SET_BY_TORCHRUN if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment sets WORLD_SIZE={os.environ['WORLD_SIZE']} but not {', '.join(missing)}; start several "
            "processes with torchrun --nproc-per-node=N, or unset WORLD_SIZE for one"
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    backend = "gloo"
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if local_rank >= there:
            raise ConfigError(
                f"process {local_rank} of this machine has none of its {there} GPUs; "
                f"give torchrun --nproc-per-node={there}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"  # CPU collectives use gloo, independently of the devices
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # After a restart the launcher's store still holds the addresses of the old processes.
    store = dist.PrefixStore(f"start_{restarts()}", store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    world = World(rank, local_rank, size, device)
    in_good_order = False
    try:
        yield world
        # A process that leaves early closes connections that another one may still read from.
        world.barrier()
        in_good_order = True
    finally:
        # Threads of the group that are still alive at the interpreter's exit can abort it. But after a failure NCCL
        # would wait here for other processes, which may wait for this one.
        if in_good_order or device.type != "cuda":
            dist.destroy_process_group()
