"""The console backend writes JSON lines, at once, and outlives the reader of its pipe."""

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
