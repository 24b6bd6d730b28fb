"""The same command again: from a damaged checkpoint, for another run, beside another process, on a full disk."""

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from cli import train, train_tokenizer
from transformerlm.training import Checkpoint
from transformerlm.utils.files import sha256_file

Tables = dict[str, dict[str, Any]]
Command = Callable[..., Any]

FILES = "manifest.json model.safetensors optimizer.safetensors state.json config.toml vocab.json merges.txt".split()
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 2]) + data[len(data) // 3 + 1 :],
    "cut": lambda data: data[:-1],
    "zero": lambda data: bytes(len(data)),
    "empty": lambda _data: b"",
}


@pytest.fixture
def command(run_main: Command, write_toml: Callable[..., Path], train_tables: Tables) -> Command:
    """Runs the training of `train_tables`, with further words, and returns what it did."""
    train_tables["logging"]["backend"] = "noop"
    path = write_toml(train_tables)
    return lambda *words: run_main(train.main, "--config", path, *words)


@pytest.fixture
def checkpoints(run_folder: Path, tmp_path: Path) -> Path:
    """The checkpoints, of steps 6 and 12, of a finished run that `command` continues."""
    return Path(shutil.copytree(run_folder, tmp_path / "runs/tiny")) / "checkpoints"


def steps_in(run_dir: Path) -> list[int]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["step"] for record in lines if record.get("event") == "train_step"]


def tensors_of(checkpoint: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in checkpoint.glob("*.safetensors")}


def all_files(folder: Path) -> dict[Path, str]:
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def damage(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize(("name", "how"), list(zip(FILES, itertools.cycle([*DAMAGES, "delete"]), strict=False)))
def test_a_damaged_checkpoint_is_passed_over_and_made_again(
    name: str, how: str, command: Command, checkpoints: Path
) -> None:
    newest = checkpoints / "step_00000012"
    whole = tensors_of(newest)
    damage(newest / name, how)
    broken = {path.name: path.read_bytes() for path in newest.iterdir()}
    done = command()
    assert (done.code, done.out) == (0, "")
    line = next(line for line in done.err.splitlines() if "kept as" in line)
    assert line.startswith(f"{newest}/")
    assert name in line  # a flip in the manifest's list may name the file listed and the manifest
    assert line.endswith("kept as step_00000012.damaged, going on from step_00000006, the newest that is whole")
    assert "continuing after step 6" in done.err
    assert tensors_of(newest) == whole
    assert {path.name: path.read_bytes() for path in (checkpoints / "step_00000012.damaged").iterdir()} == broken
    assert steps_in(checkpoints.parent) == list(range(1, 13))


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_with_every_checkpoint_damaged_the_command_fails_and_changes_nothing(
    how: str, command: Command, checkpoints: Path
) -> None:
    for step in (6, 12):
        damage(checkpoints / f"step_{step:08d}/model.safetensors", how)
    before = all_files(checkpoints.parent)
    for _ in range(2):
        done = command()
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
        assert done.err.startswith(f"error: {checkpoints}: no checkpoint is left to go on from (")
        for step in (6, 12):
            assert f"{checkpoints}/step_{step:08d}/model.safetensors: is " in done.err
    assert all_files(checkpoints.parent) == before
    for step in (6, 12):
        (checkpoints / f"step_{step:08d}").rename(checkpoints / f"step_{step:08d}.damaged")
    assert command().code == 2


def test_a_refused_run_leaves_a_damaged_checkpoint_in_its_place(command: Command, checkpoints: Path) -> None:
    damage(checkpoints / "step_00000012/state.json", "cut")
    before = all_files(checkpoints.parent)
    done = command("--training.seed", 3)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "step_00000006: is of another run: seed was 0 and is 3" in done.err
    assert all_files(checkpoints.parent) == before


def test_force_continues_another_run_and_says_what_differs(command: Command, checkpoints: Path) -> None:
    words = ("--training.seed", 3, "--training.batch-size", 2, "--training.steps", 14)
    done = command(*words)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "is of another run: seed was 0 and is 3; batch_size was 4 and is 2; " in done.err
    assert "set training.resume to force" in done.err
    done = command(*words, "--training.resume", "force")
    assert done.code == 0
    assert "is of another run, and is continued as asked: seed was 0 and is 3; batch_size was 4 and is 2\n" in done.err
    assert steps_in(checkpoints.parent) == list(range(1, 15))
    assert Checkpoint.open(checkpoints).run_state()["identity"]["seed"] == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model.d-ff", 128), "size mismatch for layers.0.ffn.w1.weight"),
        (("--model.num-layers", 3), "Missing key(s) in state_dict"),
    ],
)
def test_force_does_not_load_what_does_not_fit(
    words: tuple[object, ...], reason: str, command: Command, checkpoints: Path
) -> None:
    before = all_files(checkpoints.parent)
    done = command(*words, "--training.resume", "force", "--training.steps", 14)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "does not fit the model" in done.err
    assert reason in done.err
    assert all_files(checkpoints.parent) == before


def test_what_a_killed_process_left_goes_before_the_next_run(command: Command, checkpoints: Path) -> None:
    run_dir = checkpoints.parent
    for step in (9, 13):
        shutil.copytree(checkpoints / "step_00000012", checkpoints / f".step_{step:08d}.tmp")
    (run_dir / ".config.toml.x1.tmp").write_bytes(b"half")
    assert command("--training.steps", 13).code == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000012", "step_00000013"]
    assert not list(run_dir.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_second_process_in_the_folder_is_refused(
    command: Command,
    train_tables: Tables,
    start_training: Callable[[Tables], contextlib.AbstractContextManager[Any]],
    read_metrics: Callable[[Path], list[dict[str, Any]]],
) -> None:
    endless = train_tables | {"training": train_tables["training"] | {"steps": 10**6, "compile": False}}
    with start_training(endless) as first:
        assert first.wait_until(lambda: any("metrics.loss" in record for record in read_metrics(first.run_dir)))
        done = command()
        assert first.process.is_alive()
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert done.err.endswith("runs/tiny: another process is at work in it; wait for it, or choose another\n")
    assert command().code == 0  # the lock went with the process


@contextlib.contextmanager
def two_megabytes(folder: Path) -> Iterator[Path]:
    """A file system of that size, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("may not mount a tmpfs; the test beside this one limits the size of files instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=20, check=True)


def used_by_last_checkpoint(folder: Path) -> int:
    return sum(path.stat().st_size for path in Checkpoint.open(folder).path.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(command: Command, tmp_path: Path) -> None:
    with two_megabytes(tmp_path / "disk") as disk:
        words = ("--training.runs-dir", disk, "--checkpoint.keep-last", 9, "--checkpoint.interval", 2)
        done = command(*words)
        assert done.code == 2
        assert len(done.err.splitlines()) == 2  # what it trains, and the error
        last = Checkpoint.open(disk / "tiny")
        assert 2 <= last.step < 12
        assert f"error: {disk}/tiny/checkpoints: the checkpoint of step {last.step + 2} needs about " in done.err
        assert " MB, the disk has " in done.err
        assert all("tmp" not in path.name for path in last.path.parent.iterdir())

        done = command(*words)  # still no room: not even a first step
        assert (done.code, "a checkpoint needs about " in done.err) == (2, True)
        assert Checkpoint.open(disk / "tiny").path == last.path
        done = command("--training.runs-dir", disk, "--checkpoint.keep-last", 1, "--checkpoint.interval", 2)
        assert done.code == 2
        shutil.rmtree(disk / "tiny/checkpoints/step_00000002")
        assert command("--training.runs-dir", disk, "--checkpoint.keep-last", 1).code == 0
        assert Checkpoint.open(disk / "tiny").step == 12


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformerlm.utils.files.require_free_space", lambda *_: None)
    monkeypatch.setattr("transformerlm.checkpoint.folder.require_free_space", lambda *_: None)
    with two_megabytes(tmp_path / "disk") as disk:
        done = command("--training.runs-dir", disk, "--checkpoint.keep-last", 9, "--checkpoint.interval", 2)
        last = Checkpoint.open(disk / "tiny")
        error = f"error: {disk}/tiny/checkpoints: the checkpoint of step {last.step + 2} needs "
        assert (done.code, done.err.splitlines()[-1].startswith(error)) == (2, True)
        assert "cannot be written: No space left on device (" in done.err
        assert all("tmp" not in path.name for path in last.path.parent.iterdir())


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Sets the size that a file of this process may have: a failure of the system that needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_the_checkpoints_before_it(
    command: Command, checkpoints: Path, limit_files: Callable[[int], None]
) -> None:
    before = all_files(checkpoints)
    limit_files((checkpoints / "step_00000012/optimizer.safetensors").stat().st_size - 1)
    done = command("--training.steps", 14)
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"{checkpoints}: the checkpoint of step 14 needs " in errors[0]
    assert " cannot be written: File too large (" in errors[0]
    assert " free); " in errors[0]
    assert all_files(checkpoints) == before
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000006", "step_00000012"]


@pytest.mark.parametrize(
    ("step_of_work", "number"),
    [
        ("mkdir", errno.EACCES),
        ("fsync", errno.ENOSPC),
        ("fsync", errno.EDQUOT),
        ("fsync", errno.EIO),
        ("rename", errno.EROFS),
    ],
)
def test_whatever_the_system_refuses_is_one_line(
    step_of_work: str, number: int, command: Command, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_files(checkpoints)
    real = {"mkdir": Path.mkdir, "fsync": os.fsync, "rename": Path.rename}[step_of_work]

    def refuse(target: Any, *arguments: Any, **keywords: Any) -> Any:
        path = target if isinstance(target, Path) else Path(f"/proc/self/fd/{target}").readlink()
        if ".step_00000014.tmp" in path.parts:
            raise OSError(number, os.strerror(number))
        return real(target, *arguments, **keywords)

    monkeypatch.setattr(os if step_of_work == "fsync" else Path, step_of_work, refuse)
    done = command("--training.steps", 14)
    assert done.code == 2
    assert f"error: {checkpoints}: the checkpoint of step 14 needs " in done.err.splitlines()[-1]
    assert os.strerror(number) in done.err
    assert all_files(checkpoints) == before


def test_a_run_folder_that_is_removed_ends_the_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformerlm.training.trainer import Trainer

    step = Trainer.step

    def remove_at_four(self: Trainer, number: int, *arguments: Any) -> Any:
        if number == 4:
            shutil.rmtree(tmp_path / "runs/tiny")
        return step(self, number, *arguments)

    monkeypatch.setattr(Trainer, "step", remove_at_four)
    done = command()
    assert done.code == 2
    error = f"error: {tmp_path}/runs/tiny: was removed or replaced while this process was at work in it; start it again"
    assert done.err.splitlines()[-1] == error
    assert not (tmp_path / "runs/tiny").exists()


def full_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full whenever a temporary file for `name` is flushed."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(f".{name}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("name", ["config.toml", "loss.png"])
def test_no_room_for_a_small_file_is_one_line_and_the_old_file_stays(
    name: str, command: Command, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = checkpoints.parent
    before = (run_dir / name).read_bytes()
    full_from(name, monkeypatch)
    done = command("--training.steps", 14)
    assert done.code == 2
    assert f"error: {run_dir}: {name} needs " in done.err.splitlines()[-1]
    assert "kB and cannot be written: No space left on device (" in done.err or " MB and cannot" in done.err
    assert (run_dir / name).read_bytes() == before
    assert not list(run_dir.glob(".*.tmp"))


def test_no_room_for_a_record_is_one_line(command: Command, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logger.jsonl_logger.FileIO", lambda *_: FileIO("/dev/full", "a"))
    done = command("--training.steps", 14)
    assert done.code == 2
    error = done.err.splitlines()[-1]
    assert (
        f"error: {checkpoints.parent}/metrics.jsonl: cannot write the run's records: No space left on device (" in error
    )
    assert Checkpoint.open(checkpoints).step == 12


def test_an_unusable_folder_for_the_tokenizer_is_found_before_the_work(
    run_main: Command, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_arguments: Any, **_keywords: Any) -> Any:
        raise AssertionError("it began to work")

    monkeypatch.setattr("transformerlm.tokenizer.train_bpe", work)
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file/folder"):
        done = run_main(train_tokenizer.main, "--input.sources", workspace / "corpus.txt", "--tokenizer.output", output)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert done.err.startswith(f"error: {output}: cannot be written to: ")
        assert done.err.endswith(" free); choose another tokenizer.output\n")


def test_what_changed_is_said_and_kept(command: Command, checkpoints: Path) -> None:
    words = ("--training.steps", 24, "--training.dtype", "float32", "--optimizer.weight-decay", 0.2)
    done = command(*words, "--schedule.max-learning-rate", 0.02)
    assert done.code == 0, done.err
    start = [json.loads(line) for line in (checkpoints.parent / "metrics.jsonl").read_text("utf-8").splitlines()]
    first, second = [record for record in start if record["event"] == "train_start"]
    assert (first["step"], first["changes"]) == (0, [])
    assert (second["step"], second["settings.training.steps"]) == (12, 24)
    assert second["environment.device"] == "cpu"
    assert second["environment.torch"]
    assert second["metrics.tokens_seen"] == 12 * 4 * 32
    for setting in (
        "optimizer.weight_decay was 0.1 and is 0.2",
        "schedule.max_learning_rate was 0.01 and is 0.02",
        "training.steps was 12 and is 24",
        "training.dtype was 'auto' and is 'float32'",
    ):
        assert setting in second["changes"]
        assert f"since that checkpoint: {setting}\n" in done.err
    assert "the learning rate rises from 0.001 at step 12 to " in done.err
    events = [record for record in start if record["event"] != "artifact"]
    assert all("metrics.elapsed_seconds" in record and "metrics.tokens_seen" in record for record in events)
