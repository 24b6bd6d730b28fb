"""The wandb backend in wandb's real offline mode: what it wrote is read back from the run's log file."""

import json
import shlex
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logger.wandb_logger import RUN_ID_FILE, WandbLogger, WandbMode
from transformerlm.utils.errors import ConfigError, MissingDependencyError


@pytest.fixture(autouse=True)
def _no_account_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep wandb away from the user's login, folders and network."""
    home = tmp_path / "home"
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _logger(run_dir: Path | None, mode: WandbMode | None = "offline", **changes: Any) -> WandbLogger:
    pytest.importorskip("wandb.sdk", reason="needs wandb: uv sync --group tracking")
    arguments: dict[str, Any] = {
        "entity": "team",
        "project": "stories",
        "run_name": "tiny model",
        "run_dir": run_dir,
        "architecture": "TransformerLM",
        "dataset": "children",
        "mode": mode,
    }
    return WandbLogger(**(arguments | changes))


def _records(run_dir: Path, runs: int = 1) -> list[Any]:
    """Return the records of all offline runs in `run_dir`, oldest run first.

    wandb's service closes a file a moment after `finish` returns, hence the wait for its last record.
    """
    deadline = time.monotonic() + 60
    while True:
        files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
        records = [record for file in files for record in _read_log(file)]
        if sum(record.HasField("exit") for record in records) == runs:
            return records
        assert time.monotonic() < deadline, f"{len(records)} records in {files}, not the end of {runs} run(s)"
        time.sleep(0.02)


def _read_log(path: Path) -> Iterator[Any]:
    """Parse a `.wandb` file: LevelDB's log format (32 KiB blocks, records split into chunks) of protobufs.

    https://github.com/google/leveldb/blob/main/doc/log_format.md, with a header of 7 bytes in front.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, position, message = path.read_bytes(), 7, b""
    assert b":W&B".startswith(data[:4])
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        position += 7 + size
        if position > len(data):
            return  # still being written
        message += data[position - size : position]
        if kind in (1, 4):  # a whole record, or the last chunk of one
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


def _items(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _history(records: list[Any]) -> list[dict[str, Any]]:
    """Return the rows of the history, without wandb's own clocks."""
    rows = [_items(record.history.item) for record in records if record.HasField("history")]
    return [{key: row[key] for key in row if key not in ("_timestamp", "_runtime")} for row in rows]


@pytest.mark.timeout(120)
def test_what_a_training_run_wrote_reads_back(
    run_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLE_WEAVE", "true")  # it would speak of openai, which other tests have loaded
    checkpoint = run_dir / "checkpoints" / "step_2"
    (checkpoint / "tokenizer").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "tokenizer" / "vocab.json").write_text("{}", encoding="utf-8")
    logger = _logger(run_dir)
    logger.start({"model": {"d_model": 64, "rope_theta": 1e4}, "training": {"betas": (0.9, 0.95)}})
    logger.log({"event": "train_step", "step": 1, "metrics.loss": 3.5, "metrics.lr": 1e-3})
    logger.log({"event": "train_step", "step": 2, "metrics.loss": float("nan"), "metrics.lr": 2e-3})
    logger.log({"step": 2, "metrics.val_loss": 3.0})
    logger.log_artifact(checkpoint, name="tiny model: checkpoint", kind="checkpoint")
    logger.log_artifact(checkpoint / "tokenizer" / "vocab.json", name="vocab", kind="tokenizer")
    logger.finish(3)

    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"wandb sync {run_dir}" in err
    records = _records(run_dir)
    (run,) = [record.run for record in records if record.HasField("run")]
    config = _items(run.config.update)
    assert (run.entity, run.project, run.display_name) == ("team", "stories", "tiny model")
    assert config["model"] == {"d_model": 64, "rope_theta": 1e4}
    assert config["training"] == {"betas": [0.9, 0.95]}
    assert (config["architecture"], config["dataset"]) == ("TransformerLM", "children")

    first, second = _history(records)
    assert first == {"_step": 1, "event": "train_step", "step": 1, "metrics.loss": 3.5, "metrics.lr": 1e-3}
    assert second["_step"] == second["step"] == 2
    assert second["metrics.loss"] != second["metrics.loss"]
    assert second["metrics.val_loss"] == 3.0

    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    assert [(artifact.name, artifact.type) for artifact in artifacts] == [
        ("tiny-model-checkpoint", "checkpoint"),
        ("vocab", "tokenizer"),
    ]
    sizes = [{entry.path: entry.size for entry in artifact.manifest.contents} for artifact in artifacts]
    assert sizes == [{"model.safetensors": 7, "tokenizer/vocab.json": 2}, {"vocab.json": 2}]
    (end,) = [record.exit for record in records if record.HasField("exit")]
    assert end.exit_code == 3


@pytest.mark.timeout(120)
def test_a_resumed_run_continues_its_wandb_run(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for steps in (range(1, 4), range(3, 6)):
        logger = _logger(run_dir)
        logger.start({})
        for step in steps:
            logger.log({"step": step, "metrics.loss": 1 / step})
        logger.finish()

    records = _records(run_dir, runs=2)
    first, second = (record.run for record in records if record.HasField("run"))
    assert first.run_id == second.run_id == (run_dir / RUN_ID_FILE).read_text(encoding="utf-8").strip()
    assert [row["_step"] for row in _history(records)] == [1, 2, 3, 3, 4, 5]

    # One command uploads all parts (wandb does so in order of their start); here it only lists them.
    lines = [line for line in capfd.readouterr().err.splitlines() if "with: " in line]
    first_command, command = (line.partition("with: ")[2] for line in lines)
    assert first_command == command == f"wandb sync {run_dir}/wandb"
    words = [sys.executable, "-m", *shlex.split(command), "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    listed = [line.split()[-1] for line in done.stderr.splitlines() if line.endswith(".wandb")]
    parts = {Path(file).parent.resolve() for file in listed}  # one is named by the link `latest-run`
    assert parts == set(run_dir.glob("wandb/offline-run-*"))
    assert len(parts) == 2


@pytest.mark.timeout(120)
def test_no_record_is_lost_whatever_the_order_of_steps(run_dir: Path) -> None:
    logger = _logger(run_dir)
    logger.start({})
    for text in ("one", "two", "three"):
        logger.log({"text.prompt": text, "params.p": 0.9})
    for step in (1, 2, 7):
        logger.log({"step": step, "metrics.loss": step / 2})
        logger.log({"step": step, "metrics.val_loss": step / 4})
    logger.finish()

    rows = _history(_records(run_dir))
    assert [row["text.prompt"] for row in rows if "text.prompt" in row] == ["one", "two", "three"]
    assert [(row["step"], row["metrics.loss"], row["metrics.val_loss"]) for row in rows[3:]] == [
        (1, 0.5, 0.25),
        (2, 1.0, 0.5),
        (7, 3.5, 1.75),
    ]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4, 7]


def test_a_disabled_run_writes_nothing_in_the_run_folder(run_dir: Path) -> None:
    logger = _logger(run_dir, mode="disabled", resume_id="abc")
    logger.start({})
    logger.log({"step": 1})
    logger.finish()

    assert list(run_dir.iterdir()) == []


def test_without_a_login_the_message_says_what_to_do(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r'wandb login.*wandb\.mode = "offline"'):
        _logger(run_dir, mode="online").start({})


def test_finish_without_start_is_harmless(run_dir: Path) -> None:
    _logger(run_dir).finish()

    assert not run_dir.exists()


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"uv sync --extra wandb .*transformerlm\[wandb\]"):
        WandbLogger(
            entity=None,
            project=None,
            run_name="r",
            run_dir=run_dir,
            architecture="a",
            dataset="d",
            mode="offline",
        )
