"""A run that begins with the weights of a checkpoint: its model, its tokenizer, resuming, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import infer, inspect_data, make_data, train
from transformerlm.inference.predictor import Predictor
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe
from transformerlm.training import Checkpoint
from transformerlm.utils.files import sha256_file

Tables = dict[str, dict[str, Any]]
Command = Callable[..., Any]


@pytest.fixture
def command(run_main: Command, write_toml: Callable[..., Path], train_tables: Tables, run_folder: Path) -> Command:
    """Runs a training without a [model] that begins with the weights of `run_folder`, and returns what it did."""
    train_tables["logging"] |= {"backend": "noop", "run_name": "next"}
    train_tables["training"]["init_from"] = str(run_folder)
    del train_tables["model"]
    path = write_toml(train_tables)
    return lambda *words: run_main(train.main, "--config", path, *words)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.open(folder).model_state()


def shape(folder: Path) -> dict[str, Any]:
    return Checkpoint.open(folder).model_hparams().model_dump()


def first_loss(run_dir: Path) -> float:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return next(record["metrics.loss"] for record in lines if record["event"] == "train_step")


def test_a_run_begins_where_another_ended(command: Command, run_folder: Path, tmp_path: Path) -> None:
    newest = Checkpoint.open(run_folder).path
    # A step so small that the weights hardly move.
    rates = ("--schedule.max-learning-rate", 1e-12, "--schedule.min-learning-rate", 0)
    done = command("--training.steps", 2, *rates, "--optimizer.weight-decay", 0, "--training.init-from", newest)
    assert done.code == 0, done.err
    assert f"beginning with the weights of {newest}" in done.err
    run_dir = tmp_path / "runs/next"
    assert shape(run_dir) == shape(run_folder)
    before, after = weights(run_folder), weights(run_dir)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-9, rtol=0)
    assert first_loss(run_dir) < first_loss(run_folder) - 1
    text = (run_dir / "config.toml").read_text(encoding="utf-8")
    assert f'init_from = "{newest}"' in text
    assert "d_model = 32" in text


def test_going_on_is_not_stopping_and_needs_the_first_checkpoint_no_more(
    command: Command, run_folder: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(run_folder, tmp_path / "first"))
    begun = ("--training.init-from", first)
    whole = command(*begun, "--logging.run-name", "whole")
    assert whole.code == 0, whole.err
    assert command(*begun, "--training.steps", 6, "--schedule.cosine-cycle-iters", 12).code == 0
    shutil.rmtree(first)
    resumed = command(*begun, "--schedule.cosine-cycle-iters", 12)
    assert resumed.code == 0, resumed.err
    assert "beginning with" not in resumed.err
    assert "continuing after step 6" in resumed.err
    files = [
        sha256_file(Checkpoint.open(tmp_path / "runs" / name).path / "model.safetensors") for name in ("whole", "next")
    ]
    assert files[0] == files[1]
    gone = command(*begun, "--logging.run-name", "third")
    assert (gone.code, "there is no such folder" in gone.err) == (2, True)
    assert not (tmp_path / "runs/third").exists()


def test_a_run_is_not_continued_from_another_beginning(command: Command, run_folder: Path) -> None:
    assert command("--training.steps", 2).code == 0
    other = command("--training.init-from", Checkpoint.open(run_folder).path)
    assert other.code == 2
    assert f"is of another run: init_from was '{run_folder}' and is '{run_folder}/checkpoints/step_" in other.err


def test_the_same_beginning_may_be_written_in_another_way(
    command: Command, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--training.init-from", run_folder, "--training.steps", 2).code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run_folder)
    resumed = command("--training.init-from", "link", "--training.steps", 4)
    assert resumed.code == 0, resumed.err
    assert "continuing after step 2" in resumed.err


def test_what_contradicts_the_checkpoint_is_named_with_both_values(command: Command, tmp_path: Path) -> None:
    refused = command("--model.d-model", 64, "--model.num-layers", 2, "--model.rope-theta", 5.0, "--model.num-heads", 5)
    assert refused.code == 2
    lines = refused.err.splitlines()
    assert [line.partition("is ")[0] for line in lines] == [
        f"error: {tmp_path / 'config.toml'}: model.{key}: " for key in ("d_model", "num_heads", "rope_theta")
    ]
    assert "is 32 in " in lines[0] and "(got 64); leave it unset" in lines[0]
    longer = command("--model.context-length", 64)
    assert (longer.code, len(longer.err.splitlines())) == (2, 1)
    assert "model.context_length: is 32 in" in longer.err
    assert "know no later positions (got 64); to lengthen it" in longer.err
    assert "model.rope_factor = 2, " in longer.err
    incomplete = command("--model.context-length", 64, "--model.rope-scaling", "linear")
    assert (incomplete.code, "model.rope_factor: must be given with rope_scaling linear" in incomplete.err) == (2, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "rotary", [("--model.rope-scaling", "linear", "--model.rope-factor", 2), ("--model.rope-theta", 50000)]
)
def test_the_context_may_be_longer_with_rotary_settings(
    rotary: tuple[object, ...], command: Command, tmp_path: Path
) -> None:
    words = ("--model.context-length", 64, *rotary)
    done = command(*words, "--training.steps", 2)
    assert done.code == 0, done.err
    assert shape(tmp_path / "runs/next")["context_length"] == 64
    resumed = command(*words, "--training.steps", 3)
    assert resumed.code == 0, resumed.err
    assert "continuing after step 2" in resumed.err


def test_what_agrees_may_be_given_and_the_context_may_be_shorter(command: Command, tmp_path: Path) -> None:
    done = command("--model.d-model", 32, "--model.context-length", 16, "--training.steps", 2)
    assert done.code == 0, done.err
    assert shape(tmp_path / "runs/next")["context_length"] == 16


def test_without_it_a_model_must_fit_as_before(
    run_main: Command, write_toml: Callable[..., Path], train_tables: Tables
) -> None:
    refused = run_main(train.main, "--config", write_toml(train_tables), "--model.num-heads", 5)
    assert (refused.code, "must be divisible by num_heads = 5" in refused.err) == (2, True)


def test_data_of_another_tokenizer_is_refused(
    command: Command, run_main: Command, workspace: Path, tmp_path: Path
) -> None:
    vocab, merges = train_bpe(workspace / "corpus.txt", 300, [END_OF_TEXT], num_workers=1)
    Tokenizer(vocab, merges, [END_OF_TEXT]).save(tmp_path / "other")
    for part in ("train", "valid"):
        made = run_main(
            make_data.main, "--input.sources", workspace / "corpus.txt", "--output.tokenizer", tmp_path / "other",
            "--output.train", tmp_path / f"{part}.dat",
        )  # fmt: skip
        assert made.code == 0, made.err
    data = ("--data.train", tmp_path / "train.dat", "--data.valid", tmp_path / "valid.dat")
    refused = command(*data, "--data.tokenizer", tmp_path / "other")
    assert refused.code == 2
    assert f"{tmp_path / 'other'}: is another tokenizer than that of " in refused.err
    assert "the same ids would mean other text" in refused.err
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_is_a_tokenizer_folder(
    command: Command, run_main: Command, run_folder: Path, workspace: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(run_folder).path
    for part in ("train", "valid"):
        made = run_main(
            make_data.main, "--input.sources", workspace / "corpus.txt", "--output.tokenizer", checkpoint,
            "--output.train", tmp_path / f"{part}.dat",
        )  # fmt: skip
        assert made.code == 0, made.err
    data = ("--data.train", tmp_path / "train.dat", "--data.valid", tmp_path / "valid.dat")
    done = command(*data, "--data.tokenizer", checkpoint, "--training.steps", 2)
    assert done.code == 0, done.err
    assert Predictor.from_checkpoint(tmp_path / "runs/next", device="cpu").complete
    told = run_main(
        infer.main, "--checkpoint", tmp_path / "runs/next", "--prompt", "the cat", "--sampling.max-new-tokens", 3
    )
    assert told.code == 0, told.err


def test_data_is_inspected_with_the_windows_of_that_model(
    command: Command, run_main: Command, workspace: Path, tmp_path: Path
) -> None:
    assert command is not None
    found = run_main(
        inspect_data.main, "--inspect.data", workspace / "train.dat", "--inspect.train-config", tmp_path / "config.toml"
    )
    assert found.code == 0, found.err
    assert "windows of 32 " in found.out + found.err
