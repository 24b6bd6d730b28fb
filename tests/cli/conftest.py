"""Trainings in processes of their own, that can be killed."""

import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cli import train
from config.io import load_config
from config.train import TrainConfig

Record = dict[str, Any]
PRELOADED = [
    *("cli.train", "logger", "transformerlm.checkpoint.group_store", "transformerlm.models.build"),
    *("transformerlm.tokenizer", "matplotlib.pyplot"),
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp"),  # torch's optimizers load them when used
]


class Training:
    """A process that trains, and its run folder."""

    def __init__(self, process: BaseProcess, run_dir: Path) -> None:
        self.process = process
        self.run_dir = run_dir

    def wait_until(self, reached: Callable[[], object], seconds: float = 90.0) -> bool:
        """Return True as soon as `reached()`, which is asked without a pause, or False when the process has ended."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, "it took too long"
            if not self.process.is_alive():
                return bool(reached())
        return True

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join(20)
        assert not self.process.is_alive()

    def finish(self, seconds: float = 90.0) -> None:
        """Wait for the end of the training; it must be a good one."""
        self.process.join(seconds)
        assert self.process.exitcode == 0, f"exit code {self.process.exitcode}"


Start = Callable[[dict[str, dict[str, Any]]], contextlib.AbstractContextManager[Training]]


@pytest.fixture
def start_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a training of a configuration's tables; what still runs at the end of the context is killed.

    The process is forked from a server that has imported everything and has done nothing yet, which is a hundred times
    faster than starting Python and torch anew.
    """
    # Threads that wait without spinning, since the test's own process is at work beside them.
    for variable, value in (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")):
        monkeypatch.setenv(variable, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    @contextlib.contextmanager
    def start(tables: dict[str, dict[str, Any]]) -> Iterator[Training]:
        path = tmp_path / "started.toml"
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        config = load_config(TrainConfig, path)
        keywords = {"origin": str(path), "show_bar": False}
        process = context.Process(target=train.train, args=(config,), kwargs=keywords, daemon=True)
        process.start()
        training = Training(process, config.training.runs_dir / config.logging.run_name)
        try:
            yield training
        finally:
            training.kill()

    return start


@pytest.fixture
def read_metrics() -> Callable[[Path], list[Record]]:
    """Reads the whole lines of a run folder's metrics.jsonl, which may be missing."""

    def read(run_dir: Path) -> list[Record]:
        path = run_dir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    return read
