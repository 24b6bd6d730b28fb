"""A world of one is the same code with nothing set up; and how a batch is shared."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from config.train import TrainConfig
from transformerlm.distributed.dtensor import is_sharded, local_piece, norm_over_processes, sharded_like, whole
from transformerlm.distributed.group import World, join_world
from transformerlm.distributed.sharding import ALONE, choose_strategy
from transformerlm.training import BatchLoader
from transformerlm.utils.errors import ConfigError, DataError

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [None, "1"])
def test_a_process_alone_sets_nothing_up(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with join_world(CPU, timeout=timedelta(seconds=1)) as world:
        assert not dist.is_initialized()
        assert world == World()
        assert world.is_first
        assert world.agree(7) == 7
        assert world.mean(torch.tensor(2.5)) == 2.5
        assert world.from_first(lambda: "mine") == "mine"
        world.barrier()
        with pytest.raises(DataError, match="its own"), world.together():
            raise DataError("its own")


def test_a_world_that_torchrun_did_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(ConfigError, match=r"WORLD_SIZE=2 but not LOCAL_RANK, .*; start .* with torchrun"),
        join_world(CPU, timeout=timedelta(seconds=1)),
    ):
        pass


# Two processes, ten times over. With the group still referenced, as by DDP, its threads outlive `join_world`; and with
# a main thread that keeps the interpreter's lock, some are still waiting for it when the process ends.
ENDINGS = """
import os, socket, sys, datetime
import torch, torch.distributed as dist
from transformerlm.distributed.group import end_process, join_world

sys.setswitchinterval(100)
codes = []
for _ in range(10):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, [cores[rank % len(cores)]])
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in place.items()}
            with join_world(torch.device("cpu"), timeout=datetime.timedelta(seconds=60)) as world:
                kept = dist.group.WORLD
            end_process(7)
        children.append(child)
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_end_with_their_code_though_threads_of_the_group_live_on() -> None:
    words = [sys.executable, "-c", ENDINGS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)
    assert done.stdout == f"{20 * [7]}\n", done.stderr


def test_a_plain_tensor_is_no_piece() -> None:
    tensor, norm = torch.ones(3), torch.tensor(2.0)
    assert not is_sharded(tensor)
    assert local_piece(tensor) is tensor
    assert whole(tensor) is tensor
    assert sharded_like(tensor, norm) is norm
    assert norm_over_processes(norm, tensor) is norm


def test_a_module_of_one_process_is_not_wrapped() -> None:
    module = torch.nn.Linear(2, 2)
    assert ALONE.wrap(module, torch.float32) is module


@pytest.mark.parametrize(
    ("wanted", "size", "chosen"),
    [("auto", 1, "single"), ("fsdp", 1, "single"), ("auto", 2, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")],
)
def test_strategies_on_the_cpu(wanted: Literal["auto", "ddp", "fsdp"], size: int, chosen: str) -> None:
    assert choose_strategy(wanted, World(size=size), num_parameters=10**12) == chosen


@given(step=st.integers(0, 500), shares=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_processes_together_see_the_batch_of_one(step: int, shares: int) -> None:
    tokens = np.arange(997, dtype=np.uint16)

    def rows(**place: int) -> torch.Tensor:
        loader = BatchLoader(tokens, batch_size=12, context_length=7, seed=3, device=CPU, **place)
        return torch.stack(loader.batch(step))

    together = torch.cat([rows(rank=rank, world_size=shares) for rank in range(shares)], dim=1)
    assert torch.equal(together, rows())


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size must be divisible by the 3 processes \(got 16\)"):
        BatchLoader(np.zeros(99), batch_size=16, context_length=4, seed=0, device=CPU, world_size=3)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"batch_size": 16}, 3, "training.batch_size: must be divisible by 3 processes (got 16)"),
        ({"batch_size": 16, "micro_batch_size": 8}, 4, None),
        ({"batch_size": 24, "micro_batch_size": 8}, 2, "training.micro_batch_size: must divide the 12 sequences"),
    ],
)
def test_settings_that_processes_cannot_share(settings: dict[str, int], size: int, message: str | None) -> None:
    from cli.train import _require_even_shares

    data = {"train": "a", "valid": "b", "tokenizer": "c"}
    config = TrainConfig.model_validate({"data": data, "training": settings})
    if message is None:
        _require_even_shares(config, World(size=size), "x.toml")
    else:
        with pytest.raises(ConfigError) as error:
            _require_even_shares(config, World(size=size), "x.toml")
        assert str(error.value).startswith(f"x.toml: {message}")
