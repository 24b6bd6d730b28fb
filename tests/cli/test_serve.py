"""`transformerlm-serve` before it serves: settings, and what is said when they cannot be."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import serve

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERLM_TOKEN", raising=False)


def test_the_token_is_not_printed(run_main: Run) -> None:
    done = run_main(serve.main, "--checkpoint", "runs/x", "--server.token", "s3cret", "--print-config")
    assert done.code == 0
    assert '"token": "**********"' in done.out
    assert "s3cret" not in done.out + done.err
    for unusable in ("s3 cret", "s3cret\n"):
        done = run_main(serve.main, "--checkpoint", "runs/x", "--server.token", unusable)
        assert (done.code, "s3" in done.err, "server.token: must be printable" in done.err) == (2, False, True)


def test_another_host_needs_a_token(run_main: Run, monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> None:
    words = ("--checkpoint", run_folder / "missing", "--host", "0.0.0.0")
    done = run_main(serve.main, *words)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "'0.0.0.0' can be reached from other machines" in done.err
    assert "TRANSFORMERLM_TOKEN" in done.err
    monkeypatch.setenv("TRANSFORMERLM_TOKEN", "s3cret")
    assert "there is no such folder" in run_main(serve.main, *words).err  # that far it came


def test_a_missing_library_is_named_with_the_command(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("transformerlm.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = run_main(serve.main, "--checkpoint", run_folder)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "the server needs fastapi: uv sync --extra serve, or pip install 'transformerlm[serve]'" in done.err


def test_an_address_that_is_taken(run_main: Run, run_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_main(serve.main, "--checkpoint", run_folder, "--port", port, "--model.device", "cpu")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert f"cannot listen at 127.0.0.1 port {port}: " in done.err


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [("runs/stories", "stories"), ("runs/stories/checkpoints", "stories"), ("a/b/checkpoints/step_00000012", "b")],
)
def test_the_model_is_called_as_its_run(checkpoint: str, name: str) -> None:
    from config.io import load_config
    from config.serve import ServeConfig

    config = load_config(ServeConfig, None, {("model", "checkpoint"): checkpoint})
    assert serve._run_name(config) == name
