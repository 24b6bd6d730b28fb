"""Starting processes that end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts `python WORDS…` with some variables more in its environment; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start_one(*words: object, **variables: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=os.environ | common | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            for pid in (*children_of(process.pid), process.pid):  # a launcher's own are in other groups than it
                os.kill(pid, signal.SIGKILL)
            process.wait(10)


def children_of(parent: int) -> list[int]:
    """Return the process ids of the children of a process that has not ended."""
    tasks = Path(f"/proc/{parent}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text(encoding="utf-8").split()]


@pytest.fixture(scope="module")
def pid_of_rank() -> Callable[["subprocess.Popen[str]", int], int]:
    """Finds the process to which a launcher has given a rank."""

    def find(launcher: "subprocess.Popen[str]", rank: int) -> int:
        word = f"RANK={rank}".encode()
        return next(
            pid for pid in children_of(launcher.pid) if word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )

    return find


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
