"""The command under torchrun: a process that is killed, a launcher that is told to stop, and words said once."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from transformerlm.inference.predictor import Predictor
from transformerlm.training import Checkpoint
from transformerlm.utils.files import sha256_file

TIMEOUT = 90  # seconds a run: it takes 15 where nobody else is at work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT + 20)]


DATA = {"train": "train.dat", "valid": "valid.dat", "tokenizer": "tokenizer"}


@pytest.fixture
def torchrun(start: Callable[..., Any], workspace: Path, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the command in two processes, its run folder `tmp_path / name`."""

    def run(name: str, *options: str, strategy: str, steps: int) -> "subprocess.Popen[str]":
        tables = {
            "data": {kind: str(workspace / file) for kind, file in DATA.items()},
            "model": {"context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
            "schedule": {"warmup_iters": 2},
            "training": {"steps": steps, "batch_size": 4, "runs_dir": str(tmp_path), "device": "cpu"},
            "parallel": {"strategy": strategy, "timeout_seconds": 60},
            "validation": {"interval": 1000, "windows": 2, "batch_size": 2},
            "checkpoint": {"interval": 10},
            "logging": {"run_name": name, "interval": 1},
        }
        config = tmp_path / f"{name}.toml"
        config.write_text(tomli_w.dumps(tables), encoding="utf-8")
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", *options)
        return start(*launcher, "-m", "cli.train", "--config", config)

    return run


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} has not come"
        time.sleep(0.02)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_killed_process_is_started_again_and_ends_with_the_same_weights(
    torchrun: Callable[..., "subprocess.Popen[str]"], pid_of_rank: Callable[..., int], tmp_path: Path
) -> None:
    killed = torchrun("killed", "--max-restarts=1", strategy="ddp", steps=60)
    wait_for(tmp_path / "killed/checkpoints/step_00000010", killed)
    os.kill(pid_of_rank(killed, 1), signal.SIGKILL)
    out, err = killed.communicate(timeout=TIMEOUT)
    assert killed.returncode == 0, err
    assert "continuing after step" in err

    whole = torchrun("whole", strategy="ddp", steps=60)
    expected, err = whole.communicate(timeout=TIMEOUT)
    assert whole.returncode == 0, err
    assert err.count("training ") == 1, "words of one process only"
    steps = [record for record in records(expected) if record["event"] == "train_step"]
    assert [record["step"] for record in steps] == list(range(1, 61)), "each record once"
    losses = {record["step"]: record["metrics.loss"] for record in steps}
    again = [record for record in records(out) if record["event"] == "train_step"]
    assert {record["step"]: record["metrics.loss"] for record in again} == losses
    last = Path("checkpoints/step_00000060/model.safetensors")
    assert sha256_file(tmp_path / "killed" / last) == sha256_file(tmp_path / "whole" / last)


def test_a_launcher_told_to_stop_saves_one_common_step_which_goes_on(
    torchrun: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    stopped = torchrun("run", strategy="fsdp", steps=100_000)
    wait_for(tmp_path / "run/checkpoints/step_00000010", stopped)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=TIMEOUT)
    assert stopped.returncode != 0
    step = records(out)[-1]["step"]
    end = records(out)[-1]
    assert (end["event"], end["step"], end["finished"]) == ("train_end", step, False)
    assert f"stopped after step {step} of 100000" in err
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.step == step
    assert {value.dtype for value in checkpoint.model_state().values()} == {torch.float32}
    predictor = Predictor.from_checkpoint(tmp_path / "run", device="cpu")
    weights = predictor.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint.model_state().items())
