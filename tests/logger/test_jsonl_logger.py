"""`metrics.jsonl` is whole lines only, and a resumed run reads as one that was never stopped."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logger.jsonl_logger import JsonlLogger, truncate_after_step
from transformerlm.utils.errors import DataError


def _run(path: Path, steps: range, *, resume_step: int | None = None) -> None:
    logger = JsonlLogger(path, resume_step=resume_step)
    logger.start({})
    for step in steps:
        logger.log({"event": "train_step", "step": step, "metrics.loss": 1 / (step + 1)})
    logger.finish()


def _steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_records_are_appended_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    _run(path, range(1, 3))
    _run(path, range(3, 5))

    assert _steps(path) == [1, 2, 3, 4]


def test_each_record_is_on_disk_before_the_next(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.start({})
    for step in range(3):
        logger.log({"step": step})
        assert _steps(tmp_path / "metrics.jsonl")[-1] == step
    logger.finish()


def test_nothing_is_created_before_start(tmp_path: Path) -> None:
    JsonlLogger(tmp_path / "run" / "metrics.jsonl", resume_step=0).finish()

    assert list(tmp_path.iterdir()) == []


def test_a_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    _run(straight, range(1, 11))
    _run(resumed, range(1, 8))
    with resumed.open("ab") as file:
        file.write(b'{"event": "train_st')  # killed while it wrote step 8
    _run(resumed, range(6, 11), resume_step=5)

    assert resumed.read_bytes() == straight.read_bytes()


def test_what_follows_a_later_step_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "start"}\n{"step": 5}\n{"step": 6}\n{"event": "artifact"}\n', encoding="utf-8")
    truncate_after_step(path, 5)

    assert path.read_text(encoding="utf-8") == '{"event": "start"}\n{"step": 5}\n'


@pytest.mark.parametrize("torn", [b'{"step": 2', b'{"step": 2}', b"\0" * 40, b"\xff\xfe\n", b"3\n", b"\n"])
@pytest.mark.parametrize("resume_step", [None, 1])
def test_lines_that_are_not_whole_are_dropped(tmp_path: Path, torn: bytes, resume_step: int | None) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    _run(path, range(2, 3), resume_step=resume_step)

    assert _steps(path) == [1, 2]


def test_an_intact_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _run(path, range(1, 4))
    before = path.stat()
    truncate_after_step(path, 3)

    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@given(killed_after=st.integers(0, 9), data=st.data())
def test_any_kill_and_any_checkpoint_before_it(
    tmp_path_factory: pytest.TempPathFactory, killed_after: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    _run(path, range(1, killed_after + 1))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    survived = path.read_bytes().count(b"\n")
    checkpoint = data.draw(st.integers(0, survived))
    _run(path, range(checkpoint + 1, 11), resume_step=checkpoint)

    assert _steps(path) == list(range(1, 11))


def test_an_artifact_is_recorded(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.start({})
    logger.log_artifact(Path("checkpoints/step_1"), name="run", kind="checkpoint")
    logger.finish()

    assert json.loads((tmp_path / "metrics.jsonl").read_bytes()) == {
        "event": "artifact",
        "name": "run",
        "kind": "checkpoint",
        "path": "checkpoints/step_1",
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logger.start({})
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot write .*No space left.*free some space"):
        logger.log({"step": 1})


def test_a_folder_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot write"):
        JsonlLogger(tmp_path / "metrics.jsonl").start({})
