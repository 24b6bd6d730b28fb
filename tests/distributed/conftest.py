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
            start_new_session=True,  # so that a launcher's processes end with it below
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
