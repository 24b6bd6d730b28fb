"""Names in a config become loggers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from logger import ConsoleLogger, JsonlLogger, Logger, MultiLogger, NoopLogger, make_logger
from transformerlm.hparams import LoggingBackend, LoggingHparams, WandbHparams


def _make(backends: list[LoggingBackend], run_dir: Path | None = None, resume_step: int | None = None) -> Logger:
    logging = LoggingHparams(backend=tuple(backends), run_name="run", dataset="stories")
    return make_logger(logging, WandbHparams(project="p", mode="offline"), run_dir=run_dir, resume_step=resume_step)


@pytest.mark.parametrize(
    ("backends", "has_run_dir", "kind"),
    [
        ([], False, NoopLogger),
        (["noop"], False, NoopLogger),
        (["console"], False, ConsoleLogger),
        (["console", "noop", "console"], False, ConsoleLogger),
        ([], True, JsonlLogger),
        (["noop"], True, JsonlLogger),
        (["console"], True, MultiLogger),
    ],
)
def test_backends(backends: list[LoggingBackend], has_run_dir: bool, kind: type, tmp_path: Path) -> None:
    logger = _make(backends, tmp_path / "run" if has_run_dir else None)

    assert type(logger) is kind
    assert list(tmp_path.iterdir()) == []


def test_console_and_file_get_the_same_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = _make(["console"], tmp_path)
    logger.start({})
    logger.log({"step": 1, "metrics.loss": 0.1})
    logger.log_artifact(tmp_path, name="n", kind="k")
    logger.finish()

    assert capsys.readouterr().out == (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_the_resume_step_reaches_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
    logger = _make(["noop"], tmp_path, resume_step=1)
    logger.start({})
    logger.finish()

    assert json.loads((tmp_path / "metrics.jsonl").read_bytes()) == {"step": 1}


@pytest.mark.timeout(60)
def test_importing_logger_is_cheap() -> None:
    code = "import sys, logger; print([name for name in ('torch', 'wandb', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == "[]\n"
