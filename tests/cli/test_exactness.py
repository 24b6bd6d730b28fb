"""Real processes, killed at any moment: what they learn is what an uninterrupted one learns, to the last bit."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from transformerlm.checkpoint.folder import checkpoint_folders
from transformerlm.training import Checkpoint
from transformerlm.utils.files import sha256_file

Tables = dict[str, dict[str, Any]]
Record = dict[str, Any]
Start = Callable[[Tables], AbstractContextManager[Any]]
Read = Callable[[Path], list[Record]]

STEPS, INTERVAL = 18, 2
MEASURED = ("metrics.loss", "metrics.grad_l2_norm", "metrics.lr", "metrics.valid_loss")


@pytest.fixture
def tables(train_tables: Tables) -> Tables:
    """A run with many checkpoints, each of some megabytes, so that a kill finds one half written."""
    train_tables["model"] |= {"d_model": 192, "d_ff": 512}
    train_tables["training"] |= {"steps": STEPS, "threads": 1}
    train_tables["validation"] |= {"interval": 8}
    train_tables["checkpoint"] = {"interval": INTERVAL, "keep_last": 2}
    train_tables["logging"] |= {"backend": "noop"}
    return train_tables


def named(tables: Tables, name: str, **training: Any) -> Tables:
    return tables | {
        "logging": tables["logging"] | {"run_name": name},
        "training": tables["training"] | training,
    }


def measured(records: list[Record]) -> list[tuple[object, ...]]:
    return [
        (r["event"], r["step"], *map(r.get, MEASURED)) for r in records if r["event"] in ("train_step", "validation")
    ]


def result(run_dir: Path, read_metrics: Read) -> tuple[dict[str, str], list[tuple[object, ...]]]:
    newest = Checkpoint.open(run_dir)
    records = read_metrics(run_dir)
    assert (records[-1]["event"], records[-1]["finished"]) == ("train_end", True)
    return {path.name: sha256_file(path) for path in newest.path.glob("*.safetensors")}, measured(records)


def acknowledged(records: list[Record]) -> int:
    """Return the step of the newest checkpoint that was said to be saved."""
    return max((record["step"] for record in records if record["event"] == "checkpoint"), default=0)


def assert_nothing_lost(run_dir: Path, records: list[Record]) -> None:
    """Every folder with a proper name is whole, and the newest is at least what was said to be saved."""
    folders = checkpoint_folders(run_dir / "checkpoints")
    for folder in folders:
        Checkpoint.open(folder)
    steps = [int(folder.name[5:]) for folder in folders]
    assert max(steps, default=0) >= acknowledged(records)


def assert_finishes_like(whole: Any, tables: Tables, start_training: Start, read_metrics: Read) -> None:
    """Let the run `parts` come to its end, and compare it with the run `whole`, which was not disturbed."""
    with start_training(named(tables, "parts")) as parts:
        parts.finish()
    assert not list(parts.run_dir.rglob(".*.tmp"))
    assert result(parts.run_dir, read_metrics) == result(whole.run_dir, read_metrics)


def half_written(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints that are hidden and not yet, or no more, there under their proper names."""
    hidden = (run_dir / "checkpoints").glob(".step_*.tmp")
    return [int(path.name[6:-4]) for path in hidden if not path.with_name(path.name[1:-4]).exists()]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_random_moments(tables: Tables, start_training: Start, read_metrics: Read) -> None:
    with start_training(named(tables, "whole")) as whole:
        whole.wait_until(lambda: read_metrics(whole.run_dir))
        begin = time.monotonic()
        whole.finish()
    seconds = time.monotonic() - begin
    moments = random.Random(1)
    killed_at_work = 0
    for _ in range(8):
        with start_training(named(tables, "parts")) as parts:
            if moments.random() < 0.8:  # else while it reads its data or its checkpoint
                known = len(read_metrics(parts.run_dir))
                parts.wait_until(lambda: len(read_metrics(parts.run_dir)) > known)  # noqa: B023
            parts.process.join(moments.uniform(0, seconds / 4))
            killed_at_work += parts.process.is_alive()
            parts.kill()
            assert_nothing_lost(parts.run_dir, read_metrics(parts.run_dir))
    assert killed_at_work >= 4, "too few kills came before the end for this test to mean anything"
    assert_finishes_like(whole, tables, start_training, read_metrics)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_while_a_checkpoint_is_written(tables: Tables, start_training: Start, read_metrics: Read) -> None:
    with start_training(named(tables, "whole")) as whole:
        whole.finish()
    moments = random.Random(2)
    left: list[int] = []
    for _ in range(7):
        with start_training(named(tables, "parts")) as parts:
            before = acknowledged(read_metrics(parts.run_dir))
            target = min(STEPS, before + INTERVAL * moments.randint(1, 2))
            if parts.wait_until(lambda step=target: step in half_written(parts.run_dir)):
                time.sleep(moments.choice((0.0, moments.uniform(0, 0.01))))
            parts.kill()
            left += [step for step in half_written(parts.run_dir) if step == target]
            assert_nothing_lost(parts.run_dir, read_metrics(parts.run_dir))
    assert len(left) >= 3, "too few kills found a checkpoint half written for this test to mean anything"
    assert_finishes_like(whole, tables, start_training, read_metrics)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_losses_to_the_last_digit(
    threads: int, tables: Tables, start_training: Start, read_metrics: Read
) -> None:
    tables["training"]["steps"] = 6
    tables["checkpoint"]["interval"] = 6
    results = []
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        with start_training(named(tables, name, threads=threads, seed=seed)) as training:
            training.finish()
        results.append(result(training.run_dir, read_metrics))
    assert results[0] == results[1]
    assert len(results[0][1]) > 6
    assert results[0][0] != results[2][0]
    assert all(a != b for a, b in zip(results[0][1], results[2][1], strict=True))
