"""The shipped configurations for corpora of the hub, on a little of the same kind at another address."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: uv sync --group data")

import pyarrow
from pyarrow import parquet

from cli import make_data, train, train_tokenizer
from cli.utils import parse_command_line
from config.io import load_config
from config.make_data import MakeDataConfig
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.token_files.index import TokenFileInfo, read_info

RESOURCES = Path(__file__).parents[2] / "config/resources"
NUM_ROWS = 8000
"""So many that some are among the thousandth that is for validation."""

HUB = {
    "tinystories": "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main",
    "fineweb_edu": "hf://datasets/HuggingFaceFW/fineweb-edu",
}


@pytest.fixture
def mirror(tmp_path: Path, documents: list[str]) -> Path:
    """A folder with the files of both corpora where the hub has them."""
    draw = random.Random(0)
    texts = [" ".join(draw.sample(documents, 3)) for _ in range(400)]
    folder = tmp_path / "mirror"
    (folder / "sample/10BT").mkdir(parents=True)
    for name, some in (("train", texts[:380]), ("valid", texts[380:])):
        text = "\n<|endoftext|>\n".join(some)
        (folder / f"TinyStoriesV2-GPT4-{name}.txt").write_text(text, encoding="utf-8", newline="")
    many = [f"{number} {draw.choice(documents)}" for number in range(NUM_ROWS)]
    for number in range(3):
        rows = many[number::3]
        table = pyarrow.table({"text": rows, "id": [f"<urn:uuid:{number}>" for number in range(len(rows))]})
        parquet.write_table(table, folder / f"sample/10BT/{number:03d}_00000.parquet", row_group_size=1000)
    return folder


@pytest.mark.parametrize("corpus", HUB)
def test_the_files_hand_on_what_they_make(corpus: str) -> None:
    folder = RESOURCES / corpus
    tokenizer = load_config(TrainTokenizerConfig, folder / "train_tokenizer.toml")
    data = load_config(MakeDataConfig, folder / "make_data.toml")
    training = load_config(TrainConfig, folder / "train.toml")
    assert tokenizer.tokenizer.output == data.output.tokenizer == training.data.tokenizer
    assert training.data.train in (data.output.train, (data.output.train,))
    assert training.data.valid == data.output.valid
    assert all(
        name.startswith(HUB[corpus])
        for name in (*tokenizer.input.sources, *data.input.sources, *data.input.valid_sources)
    )


@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize("corpus", HUB)
def test_a_mirror_of_the_hub_gives_what_a_folder_of_the_same_files_gives(
    corpus: str, mirror: Path, tmp_path: Path, serve: Callable[..., Any], run_main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made: list[tuple[bytes, TokenFileInfo]] = []
    for place, base in (("local", str(mirror)), ("remote", serve(mirror).url)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        for command, schema, name in (
            (train_tokenizer, TrainTokenizerConfig, "train_tokenizer"),
            (make_data, MakeDataConfig, "make_data"),
        ):
            path = RESOURCES / corpus / f"{name}.toml"
            moved = moved_inputs(load_config(schema, path).input, HUB[corpus], base)
            done = run_main(command.main, "--config", path, *moved)
            assert done.code == 0, done.err
        made.append((Path(f"data/{corpus}/train.dat").read_bytes(), read_info(Path(f"data/{corpus}/train.dat"))))
    assert made[0][0] == made[1][0]
    num_documents = made[0][1].num_documents + read_info(Path(f"data/{corpus}/valid.dat")).num_documents
    assert num_documents == {"tinystories": 400, "fineweb_edu": NUM_ROWS}[corpus]
    done = run_main(train.main, "--config", RESOURCES / corpus / "train.toml", *SMALL)
    assert done.code == 0, done.err


SMALL = [
    *("--training.steps", 2, "--training.batch-size", 2, "--training.micro-batch-size", 1),
    *("--model.context-length", 16, "--model.d-model", 32, "--model.num-layers", 1, "--model.num-heads", 2),
    *("--model.d-ff", 64, "--schedule.warmup-iters", 1, "--validation.windows", 2, "--validation.batch-size", 2),
    *("--training.compile", "false", "--training.device", "cpu"),
]


def moved_inputs(settings: Any, hub: str, base: str) -> list[str]:
    """Return the words that put the sources of `settings` at another address."""
    words = []
    for key in ("sources", "valid_sources"):
        names = getattr(settings, key, ())
        if names:
            words += [f"--input.{key}", *(name.replace(hub, base) for name in names)]
    return words


def test_only_the_address_differs(mirror: Path) -> None:
    """The words above change the sources and nothing else."""
    path = RESOURCES / "tinystories/make_data.toml"
    shipped = load_config(MakeDataConfig, path)
    words = ["--config", str(path), *moved_inputs(shipped.input, HUB["tinystories"], str(mirror))]
    invocation = parse_command_line(MakeDataConfig, prog="x", argv=words).load()
    assert invocation.overridden == {("input", "sources"), ("input", "valid_sources")}
    assert invocation.config.output == shipped.output
