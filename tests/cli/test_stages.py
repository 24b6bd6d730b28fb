"""A stage is skipped exactly while nothing that it reads, is told or has made changes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cli.stages import Stage
from config.make_data import MakeDataConfig
from config.schemas import DatasetInputSection, DatasetOutputSection
from databuilder.sources import SourceFile


def _config(fraction: float = 0.1) -> MakeDataConfig:
    return MakeDataConfig(
        input=DatasetInputSection(sources=("a.txt",), valid_fraction=fraction),
        output=DatasetOutputSection(tokenizer=Path("tok"), train=Path("t.dat"), valid=Path("v.dat")),
    )


def _stage(folder: Path, fraction: float = 0.1, remote: Sequence[SourceFile] = ()) -> Stage:
    return Stage(
        title="copy",
        config=_config(fraction),
        inputs=lambda: [folder / "input", *remote],
        outputs=lambda: [folder / "output"],
        stamp=folder / "stage.json",
        run=lambda: 0,
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    (tmp_path / "input").write_text("in")
    (tmp_path / "output").write_text("out")
    _stage(tmp_path).stamp_finished()
    return tmp_path


def test_a_finished_stage_is_up_to_date(finished: Path) -> None:
    assert _stage(finished).is_up_to_date()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "input").write_text("other"),
        lambda folder: (folder / "input").unlink(),
        lambda folder: (folder / "output").write_text("other"),
        lambda folder: (folder / "output").unlink(),
        lambda folder: (folder / "stage.json").unlink(),
        lambda folder: (folder / "stage.json").write_text("{"),
    ],
)
def test_any_change_of_files_is_seen(finished: Path, change: Callable[[Path], object]) -> None:
    change(finished)
    assert not _stage(finished).is_up_to_date()


def test_a_change_of_settings_is_seen(finished: Path) -> None:
    assert not _stage(finished, fraction=0.2).is_up_to_date()
    assert not _stage(finished, fraction=0.2).is_same_work()


def test_a_change_of_a_remote_input_is_seen(finished: Path) -> None:
    def stage(num_bytes: int, version: str) -> Stage:
        return _stage(finished, remote=[SourceFile("https://host/a.txt", num_bytes, "text", version)])

    stage(10, "one").stamp_finished()
    assert stage(10, "one").is_up_to_date()
    assert not stage(10, "two").is_up_to_date()
    assert not stage(11, "one").is_same_work()


def test_work_that_was_begun_is_the_same_but_not_up_to_date(finished: Path) -> None:
    _stage(finished).stamp_begun()
    assert _stage(finished).is_same_work()
    assert not _stage(finished).is_up_to_date()
