"""Training on several files, and with attention inside documents, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import train
from databuilder import build_dataset
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.training import Checkpoint

Tables = dict[str, dict[str, Any]]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, workspace: Path) -> Path:
    """Another token file of the workspace's tokenizer."""
    folder = tmp_path_factory.mktemp("second")
    text = f"\n{END_OF_TEXT}\n".join(f"The dog number {number} ran home over the hill." for number in range(100))
    (folder / "dogs.txt").write_text(text, encoding="utf-8")
    build_dataset([folder / "dogs.txt"], Tokenizer.load(workspace / "tokenizer"), folder / "dogs.dat")
    return folder / "dogs.dat"


@pytest.fixture
def command(run_main: Command, write_toml: Callable[..., Path], train_tables: Tables) -> Command:
    """Runs the training of `train_tables`, with further words, and returns what it did."""
    train_tables["schedule"]["cosine_cycle_iters"] = 12  # for shorter runs too
    path = write_toml(train_tables)
    return lambda *words: run_main(train.main, "--config", path, *words)


def losses(out: str) -> list[float]:
    records = [json.loads(line) for line in out.splitlines()]
    return [record["metrics.loss"] for record in records if record["event"] == "train_step"]


def identity(run_dir: Path) -> dict[str, Any]:
    return Checkpoint.open(run_dir).run_state()["identity"]


def test_a_mixture_trains_says_its_epochs_and_goes_on_as_if_not_stopped(
    command: Command, workspace: Path, second: Path, tmp_path: Path
) -> None:
    mixed = ("--data.train", workspace / "train.dat", second, "--data.train-weights", 3, 1)
    whole = command(*mixed, "--logging.run-name", "whole")
    assert whole.code == 0, whole.err
    assert f"of {workspace / 'train.dat'}, " in whole.err
    assert f" of {second}) on cpu" in whole.err
    first = command(*mixed, "--training.steps", 6)
    rest = command(*mixed)
    assert losses(first.out) + losses(rest.out) == losses(whole.out)
    alone = command("--logging.run-name", "alone")
    assert losses(alone.out) != losses(whole.out)
    one, two = identity(tmp_path / "runs/alone"), identity(tmp_path / "runs/whole")
    assert two["data"][0] == one["data"]
    assert two["data.quotas"] == [7500, 2500]

    other = command(*mixed[:-2], 1, 1, "--training.steps", 14)
    assert other.code == 2
    assert "is of another run: data.quotas was [7500, 2500] and is [5000, 5000]; choose another" in other.err


def test_one_file_has_the_identity_that_it_always_had(command: Command, workspace: Path, tmp_path: Path) -> None:
    command("--data.train", workspace / "train.dat", "--data.train-weights", 2)
    sidecar = json.loads((workspace / "train.dat.json").read_text(encoding="utf-8"))
    found = {name: value for name, value in identity(tmp_path / "runs/tiny").items() if not name.startswith("model.")}
    assert found == {
        "data": sidecar["data_sha256"],
        "tokenizer": sidecar["tokenizer_sha256"],
        "seed": 0,
        "batch_size": 4,
    }


def test_a_model_without_later_features_has_the_identity_that_it_always_had(run_folder: Path) -> None:
    """What is None need not be in the checkpoint that a run goes on from."""
    shape = {name for name, value in identity(run_folder).items() if name.startswith("model.") and value is not None}
    names = "vocab_size context_length d_model num_layers num_heads num_kv_heads d_ff rope_theta norm_eps"
    assert shape == {f"model.{name}" for name in [*names.split(), "tie_embeddings", "qk_norm", "qkv_bias"]}


def test_a_masked_run_goes_on_exactly_and_only_masked(command: Command) -> None:
    masked = ("--data.mask-documents", "true")
    whole = command(*masked, "--logging.run-name", "whole")
    assert whole.code == 0, whole.err
    first = command(*masked, "--training.steps", 6)
    refused = command()
    assert refused.code == 2
    assert "is of another run: data.mask_documents was True and is None" in refused.err
    rest = command(*masked)
    assert losses(first.out) + losses(rest.out) == losses(whole.out)
    assert losses(command("--logging.run-name", "plain").out) != losses(whole.out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data.train-weights", 1, 1e-9), "error: data.train_weights: file 2 of data.train would be given none"),
        (("--data.train-weights", 1, 2, 3), "data.train_weights: must be as many as the files of train, 2"),
        (("--data.train-weights", 1, -1), "data.train_weights.1: should be greater than 0 (got -1"),
        (("--data.tokenizer", "OTHER"), "was made by another tokenizer than"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_before_anything_is_written(
    words: tuple[Any, ...], expected: str, command: Command, workspace: Path, second: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tokenizer = Tokenizer.load(workspace / "tokenizer")
    Tokenizer(dict(tokenizer.vocab), tokenizer.merges, [END_OF_TEXT, "<|other|>"]).save(other)
    words = tuple(other if word == "OTHER" else word for word in words)
    done = command("--data.train", workspace / "train.dat", second, *words)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_documents_without_an_end_cannot_be_masked(command: Command, workspace: Path, tmp_path: Path) -> None:
    words: list[Any] = []
    for key, name in (("--data.train", "train.dat"), ("--data.valid", "valid.dat")):
        for file in (name, f"{name}.documents"):
            (tmp_path / file).write_bytes((workspace / file).read_bytes())
        sidecar = json.loads((workspace / f"{name}.json").read_text(encoding="utf-8"))
        (tmp_path / f"{name}.json").write_text(json.dumps({**sidecar, "end_of_text_id": None}), encoding="utf-8")
        words += [key, tmp_path / name]
    done = command(*words, "--data.mask-documents")
    assert done.code == 2
    assert "has no end-of-text token, after which data.mask_documents could cut" in done.err
