"""The console backend writes JSON lines, at once, and outlives the reader of its pipe."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logger.console_logger import ConsoleLogger


def test_stdout_is_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger()
    logger.start({"training": {"steps": 2}})
    logger.log({"event": "train_step", "step": 1, "metrics.loss": float("nan")})
    logger.log({"text.prompt": "one\ntwo", "text.output": "drei – 🦊"})
    logger.log_artifact(Path("runs/a/step_1"), name="a", kind="checkpoint")
    logger.finish()

    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "train_step", "step": 1, "metrics.loss": "NaN"},
        {"text.prompt": "one\ntwo", "text.output": "drei – 🦊"},
        {"event": "artifact", "name": "a", "kind": "checkpoint", "path": "runs/a/step_1"},
    ]
    assert err == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_line_to_read_unless_json_is_asked_for() -> None:
    step = {"event": "train_step", "step": 1200, "metrics.loss": 1.25, "metrics.lr": 1e-3, "metrics.epoch": 0.5}
    records = [
        step,
        {"event": "validation", "step": 1200, "metrics.valid_loss": 1.5, "metrics.valid_bits_per_byte": 0.5},
        {"event": "checkpoint", "step": 1200, "path": "runs/a/step_1"},
        {"event": "artifact", "name": "a", "kind": "model", "path": "runs/a/step_1"},
        {"event": "inference", "text.prompt": "Once", "text.output": " upon"},
    ]
    terminal, as_json, as_text = _Terminal(), _Terminal(), io.StringIO()
    for stream, logger in (
        (terminal, ConsoleLogger(terminal)),
        (as_json, ConsoleLogger(as_json, format="json")),
        (as_text, ConsoleLogger(as_text, format="text")),
    ):
        for record in records:
            logger.log(record)
        assert stream.getvalue().endswith("\n")
    assert terminal.getvalue().splitlines() == [
        "step 1,200  loss 1.2500  lr 1.00e-03",
        "step 1,200  validation loss 1.5000  0.5000 bits per byte",
        "step 1,200  saved runs/a/step_1",
        "Once upon",
    ]
    assert as_text.getvalue() == terminal.getvalue()
    assert [json.loads(line) for line in as_json.getvalue().splitlines()] == records


def test_a_line_can_be_read_before_the_next_is_written() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, encoding="utf-8") as reader, os.fdopen(write_end, "w") as writer:
        ConsoleLogger(writer).log({"step": 1})

        assert json.loads(reader.readline()) == {"step": 1}


_LOG_UNTIL_TOLD_TO_STOP = """
import sys
from logger.console_logger import ConsoleLogger
logger = ConsoleLogger()
logger.log({"step": 0})
sys.stdin.readline()
for step in range(1, 1000):
    logger.log({"step": step})
print("done", file=sys.stderr)
"""


@pytest.mark.timeout(60)
def test_the_run_goes_on_when_the_reader_has_gone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LOG_UNTIL_TOLD_TO_STOP],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin and process.stdout and process.stderr
        assert json.loads(process.stdout.readline()) == {"step": 0}
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        messages = process.stderr.read().splitlines()

    assert process.returncode == 0
    assert len(messages) == 2
    assert "stdout is gone" in messages[0]
    assert messages[1] == "done"
