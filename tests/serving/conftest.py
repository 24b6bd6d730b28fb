"""A random model, and servers of it: without a socket, in a thread of the test, and in a process of their own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from config.io import to_toml
from config.schemas import Config
from transformerlm.hparams import ModelHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.models.build import build_model
from transformerlm.serving.app import App
from transformerlm.serving.server import Server
from transformerlm.serving.settings import LimitsHparams, ServerHparams
from transformerlm.training import CheckpointStore

ROOT = Path(__file__).parents[2]
SLOTS = 8
SHAPE = ModelHparams(vocab_size=320, context_length=2048, d_model=32, num_layers=2, num_heads=2, d_ff=64)


class ShapeConfig(Config):
    """What a checkpoint's configuration must say of a model."""

    model: ModelHparams


@pytest.fixture(scope="session")
def checkpoint(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model with random weights and a context of 2048, which writes on, when greedy, to its end."""
    folder = tmp_path_factory.mktemp("served") / "random-stories"
    folder.mkdir()
    store = CheckpointStore(
        folder / "checkpoints",
        keep_last=1,
        config_toml=to_toml(ShapeConfig(model=SHAPE)),
        tokenizer=workspace / "tokenizer",
    )
    weights = build_model(SHAPE, seed=0).state_dict()
    weights["lm_head.weight"][-1] = 0  # the end of text is never the likeliest
    store.save(model=weights, optimizer={}, state={"step": 1})
    return folder


@pytest.fixture(scope="session")
def predictor(checkpoint: Path) -> Predictor:
    """The same model in this process."""
    return Predictor.from_checkpoint(checkpoint, device="cpu")


def make_app(predictor: Predictor, *, slots: int = SLOTS, token: str | None = None, **settings: Any) -> App:
    """An app; settings are those of the server and of the limits."""
    server = {name: value for name, value in settings.items() if name in ServerHparams.model_fields}
    limits = {name: value for name, value in settings.items() if name not in server}
    return App(
        predictor, name="tiny", slots=slots, server=ServerHparams(**server), limits=LimitsHparams(**limits), token=token
    )


@pytest.fixture
def client(predictor: Predictor) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of an app with the settings given, without a socket between them."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            app = make_app(**({"predictor": predictor} | settings))
            test_client = TestClient(app.asgi, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
            return stack.enter_context(test_client)

        yield make


@pytest.fixture
def live(predictor: Predictor) -> Iterator[Callable[..., str]]:
    """Starts servers with the settings given on free ports, in threads; returns their addresses."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(**settings: Any) -> str:
        limits = LimitsHparams(**{key: value for key, value in settings.items() if key in LimitsHparams.model_fields})
        app = make_app(predictor, **settings)
        server = Server(app, ServerHparams(port=0, drain_seconds=0.0), limits)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        httpx.get(f"{server.address}/health", timeout=20).raise_for_status()
        return server.address

    yield start
    for server, thread in started:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


class ServerProcess:
    """A server in a process of its own, and what it has said on stderr."""

    def __init__(self, checkpoint: Path, log: Path, *words: object, token: str | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {} if token is None else {"TRANSFORMERLM_TOKEN": token}
        command = [sys.executable, "-m", "cli.serve", "--checkpoint", str(checkpoint), "--port", "0"]
        command += ["--model.device", "cpu", "--model.threads", "1", *map(str, words)]
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=file, stdout=subprocess.PIPE, env=environment)
        self.address = self._wait_for_address()

    def _wait_for_address(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(r"at (http://\S+);", self.said()):
                httpx.get(f"{found[1]}/health", timeout=30).raise_for_status()
                return found[1]
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"the server did not start: {self.said()}")

    def said(self) -> str:
        """What it has written to stderr."""
        return self.log.read_bytes().decode("utf-8")

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        text = httpx.get(f"{self.address}/metrics", timeout=20).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def resident_bytes(self) -> int:
        """Memory that it holds."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text("ascii"))
        assert found
        return int(found[1]) * 1024

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        """Return its exit code."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it, if it has not."""
        self.process.kill()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start_process(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts server processes with the words given; what still runs at the end is killed."""
    started: list[ServerProcess] = []

    def start(*words: object, token: str | None = None) -> ServerProcess:
        started.append(ServerProcess(checkpoint, tmp_path / f"server{len(started)}.log", *words, token=token))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="session")
def process(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server process for many tests, with a short queue."""
    one = ServerProcess(checkpoint, tmp_path_factory.mktemp("log") / "server.log", "--limits.queue", 8)
    yield one
    one.kill()
