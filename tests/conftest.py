"""Things small enough to be made for every test run: text, a tokenizer, token files, a trained model."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w
import torch
from hypothesis import settings

from cli import train as train_command
from config.io import load_config
from config.train import TrainConfig
from databuilder import build_dataset
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

WORDS = (
    "the a little big old red blue kind cat dog bird fox tree house river hill girl boy ran "
    "sat saw went found lost and but then so with under over near home happy sad again café naïve 你好"
).split()

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)  # a busy one is no failure
settings.load_profile("any machine")


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Three hundred short texts, all different."""
    words = random.Random(0)
    return [
        f"Story {number}.\n" + " ".join(words.choices(WORDS, k=words.randint(5, 40))).capitalize() + "."
        for number in range(300)
    ]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A folder with `corpus.txt`, `tokenizer/`, `train.dat` and `valid.dat`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("workspace")
    corpus = folder / "corpus.txt"
    corpus.write_text(f"\n{END_OF_TEXT}\n".join(documents), encoding="utf-8", newline="")
    vocab, merges = train_bpe(corpus, 320, [END_OF_TEXT], num_workers=1)
    tokenizer = Tokenizer(vocab, merges, [END_OF_TEXT])
    tokenizer.save(folder / "tokenizer")
    build_dataset([corpus], tokenizer, folder / "train.dat", valid=folder / "valid.dat", valid_fraction=0.1)
    return folder


@pytest.fixture(scope="session")
def tokenizer(workspace: Path) -> Tokenizer:
    """A tokenizer of 320 entries, trained on `documents`."""
    return Tokenizer.load(workspace / "tokenizer")


def _train_tables(workspace: Path, runs_dir: Path) -> dict[str, dict[str, Any]]:
    return {
        "data": {
            "train": str(workspace / "train.dat"),
            "valid": str(workspace / "valid.dat"),
            "tokenizer": str(workspace / "tokenizer"),
        },
        "model": {"context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
        "schedule": {"max_learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_iters": 2},
        "training": {"steps": 12, "batch_size": 4, "runs_dir": str(runs_dir), "device": "cpu"},
        "validation": {"interval": 6, "windows": 4, "batch_size": 4},
        "checkpoint": {"interval": 6},
        "logging": {"run_name": "tiny", "interval": 1},
    }


@pytest.fixture
def train_tables(workspace: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a `TrainConfig` whose run takes a fraction of a second; runs go to `tmp_path / "runs"`."""
    return _train_tables(workspace, tmp_path / "runs")


@pytest.fixture
def write_toml(tmp_path: Path) -> Callable[..., Path]:
    """Writes tables to a TOML file in `tmp_path` and returns its path."""

    def write(tables: dict[str, dict[str, Any]], name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def run_folder(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training of twelve steps. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    tables = _train_tables(workspace, folder / "runs")
    tables["logging"]["backend"] = "noop"
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    assert train_command.train(load_config(TrainConfig, path), origin=str(path), show_bar=False) == 0
    return folder / "runs" / "tiny"


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command's `main` in this process with the given words, and returns what it did."""

    def run(main: Callable[[], int], *words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run
