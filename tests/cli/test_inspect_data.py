"""What is in a token file: counts, epochs, documents, and the text of windows and batches."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli import inspect_data
from cli.passages import visible
from databuilder import build_dataset
from transformerlm.token_files.index import read_info
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.training import BatchLoader, TokenDataset

ROOT = Path(__file__).parents[2]

Tables = dict[str, dict[str, Any]]
Command = Callable[..., Any]


@pytest.fixture
def look(run_main: Command) -> Command:
    """Runs the command with the given words and returns what it did."""
    return lambda *words: run_main(inspect_data.main, *words)


@pytest.fixture
def found(look: Command) -> Command:
    """The same, and returns what it found, which is JSON."""

    def run(*words: object) -> dict[str, Any]:
        done = look(*words, "--inspect.format", "json")
        assert done.code == 0, done.err
        assert len(done.out.splitlines()) == 1
        return json.loads(done.out)

    return run


def text_of(passage: dict[str, Any]) -> str:
    return "".join(part["text"] + END_OF_TEXT * part["ends"] for part in passage["documents"])


def test_the_counts_are_those_of_the_sidecar(look: Command, found: Command, workspace: Path) -> None:
    path = workspace / "train.dat"
    info, report = read_info(path), found("--data", path)
    assert report["tokens"] == info.num_tokens
    assert report["documents"] == info.num_documents
    assert report["text_bytes"] == info.num_text_bytes
    assert report["bytes_per_token"] == pytest.approx(1 / report["tokens_per_byte"])
    assert report["text"] == info.text
    assert "epochs" not in report
    done = look("--data", path)
    assert done.code == 0
    assert done.out.splitlines()[0] == str(path)
    assert f"  tokens                {info.num_tokens:,}\n" in done.out
    assert f"  documents             {info.num_documents:,}\n" in done.out
    assert all(f"{count:,}\n" in done.out for count in info.text.values())


def test_shards_are_counted_and_read_as_one(found: Command, look: Command, workspace: Path, sharded: Path) -> None:
    words = ("--inspect.tokenizer", workspace / "tokenizer", "--inspect.window", 30)
    single, several = (found("--data", path, *words) for path in (workspace / "train.dat", sharded))
    assert len(several.pop("shards")) == 3
    single.pop("shards")
    assert several.pop("data") == several["window"].pop("data") == str(sharded)
    assert single.pop("data") == single["window"].pop("data")
    assert several == single
    assert "  shards                3\n" in look("--data", sharded).out
    sharded.with_name("train.00002.dat").unlink()
    done = look("--data", sharded)
    assert (done.code, done.out, "train.00002.dat: is missing" in done.err) == (2, "", True)


@pytest.mark.parametrize("lists", [True, False], ids=["listed", "looked for"])
def test_the_longest_documents_are_found(
    lists: bool, found: Command, workspace: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "train.dat"
    for name in ("train.dat", "train.dat.json", "train.dat.documents"):
        (tmp_path / name).write_bytes((workspace / name).read_bytes())
    if not lists:  # as in format 1
        (tmp_path / "train.dat.documents").unlink()
        sidecar = json.loads((tmp_path / "train.dat.json").read_text(encoding="utf-8"))
        old = json.dumps({**sidecar, "format_version": 1, "shards": []})
        (tmp_path / "train.dat.json").write_text(old, encoding="utf-8")
    ids = np.fromfile(path, dtype="<u2")
    ends = np.flatnonzero(ids == tokenizer.eos_token_id) + 1
    lengths = np.diff(ends, prepend=0)
    longest = found("--data", path, "--inspect.longest", 4)["longest_documents"]
    assert [document["num_tokens"] for document in longest] == sorted(lengths.tolist(), reverse=True)[:4]
    for document in longest:
        assert document["begin"] + document["num_tokens"] in ends
    assert found("--data", path, "--inspect.longest", 0)["longest_documents"] == []


def test_a_window_is_shown_with_the_ends_of_its_documents(
    look: Command, found: Command, workspace: Path, tokenizer: Tokenizer
) -> None:
    path = workspace / "train.dat"
    ids = np.fromfile(path, dtype="<u2")
    words = ("--data", path, "--inspect.tokenizer", workspace / "tokenizer", "--inspect.context-length", 60)
    for number in (0, 3, (len(ids) - 2) // 60):
        window = found(*words, "--inspect.window", number)["window"]
        expected = ids[number * 60 : number * 60 + 61]
        assert text_of(window) == tokenizer.decode(expected)
        assert (window["begin"], window["end"]) == (number * 60, number * 60 + len(expected))
        assert window["begins_inside"] == (number > 0 and ids[number * 60 - 1] != tokenizer.eos_token_id)
    done = look(*words, "--inspect.window", 3)
    lines = done.out.splitlines()
    title = lines.index(f"── window 3: ids 180 to 240 of {path}")
    shown = "\n".join(line.removeprefix("│ ") for line in lines[title + 1 :] if line.startswith("│"))
    documents = [document for document in tokenizer.decode(ids[180:241]).split(END_OF_TEXT) if document]
    assert shown == "\n".join(documents)
    assert lines.count("└─ end of document") == (ids[180:241] == tokenizer.eos_token_id).sum() > 0
    beyond = look(*words, "--inspect.window", len(ids))
    assert beyond.code == 2
    assert "inspect.window: must be below" in beyond.err


@pytest.fixture
def mixed(train_tables: Tables, workspace: Path, tmp_path: Path, write_toml: Callable[..., Path]) -> Path:
    """A training configuration that mixes two files."""
    text = f"\n{END_OF_TEXT}\n".join(f"The dog number {number} ran home over the hill." for number in range(100))
    (tmp_path / "dogs.txt").write_text(text, encoding="utf-8")
    build_dataset([tmp_path / "dogs.txt"], Tokenizer.load(workspace / "tokenizer"), tmp_path / "dogs.dat")
    train_tables["data"] |= {"train": [str(workspace / "train.dat"), str(tmp_path / "dogs.dat")]}
    train_tables["data"]["train_weights"] = [1, 1]
    train_tables["training"] |= {"seed": 5, "batch_size": 6}
    return write_toml(train_tables, "mixed.toml")


def test_a_step_shows_the_batch_that_training_sees(
    look: Command, found: Command, mixed: Path, workspace: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    paths = [workspace / "train.dat", tmp_path / "dogs.dat"]
    tokens = [TokenDataset.open(path, context_length=32).tokens for path in paths]
    place = {"context_length": 32, "seed": 5, "device": torch.device("cpu")}
    inputs, targets = BatchLoader(tokens, weights=[1, 1], batch_size=6, **place).batch(6)
    report = found("--data", paths[1], "--inspect.train-config", mixed, "--inspect.step", 7)
    rows = report["batch"]["rows"]
    assert report["batch"]["step"] == 7
    assert [text_of(row) for row in rows] == [
        tokenizer.decode([*row.tolist(), last]) for row, last in zip(inputs, targets[:, -1].tolist(), strict=True)
    ]
    assert {row["data"] for row in rows} == {str(path) for path in paths}
    windows = (len(tokens[1]) - 1) // 32 - 1
    assert report["epochs"] == pytest.approx(12 * 3 / windows)
    done = look("--data", paths[1], "--inspect.train-config", mixed, "--inspect.step", 7)
    assert f"  epochs                {12 * 3 / windows:.2f} in 12 steps of 6 windows of 32 ({mixed})\n" in done.out
    assert done.out.count("── step 7, row ") == 6


def test_data_that_a_training_does_not_read_has_no_epochs(
    look: Command, found: Command, mixed: Path, workspace: Path
) -> None:
    words = ("--data", workspace / "valid.dat", "--inspect.train-config", mixed)
    assert found(*words)["epochs"] is None
    assert "none: " in look(*words).out
    done = look(*words, "--inspect.step", 1)
    assert (done.code, done.out) == (2, "")
    assert f"inspect.step: {mixed} does not train on" in done.err
    done = look("--data", workspace / "train.dat", "--inspect.train-config", mixed, "--inspect.step", 13)
    assert (done.code, "must be at most training.steps" in done.err) == (2, True)


def test_what_a_terminal_would_act_on_is_written_out() -> None:
    text = "a\tb\x1b[2J\x00\x7f\x9b é 你好\u202e\u2028\r\n😀 \ufeff"
    assert visible(text) == "a\\tb\\x1b[2J\\x00\\x7f\\x9b é 你好\\u202e\\u2028\\r\n😀 \\ufeff"


def test_texts_of_a_hostile_corpus_cannot_move_the_cursor(look: Command, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(f"one \x1b[31mred\x07\n{END_OF_TEXT}\ntwo \u202eowt\n", encoding="utf-8")
    build_dataset([tmp_path / "bad.txt"], Tokenizer.load(workspace / "tokenizer"), tmp_path / "bad.dat")
    words = ("--data", tmp_path / "bad.dat", "--inspect.tokenizer", workspace / "tokenizer", "--inspect.window", 0)
    for form in ("text", "json"):
        done = look(*words, "--inspect.format", form)
        assert done.code == 0
        assert "\\u202e" in done.out
        assert all(character.isprintable() or character == "\n" for character in done.out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data", "none.dat"), "none.dat: there is no such token file; make it with transformerlm-make-data"),
        (("--data", "{w}/corpus.txt"), "corpus.txt: is not a token file, or its sidecar corpus.txt.json is missing"),
        (("--data", "{w}/train.dat", "--inspect.window", "0"), "inspect.tokenizer: must be given, or train_config"),
        (("--data", "{w}/train.dat", "--inspect.step", "1"), "inspect.train_config: must be given, since step is"),
        (("--data", "{w}/train.dat", "--inspect.tokenizer", "nowhere"), "transformerlm-train-tokenizer"),
        (("--data", "{w}/train.dat", "--inspect.tokenizer", "{t}/other"), "name its tokenizer as inspect.tokenizer"),
        (("--data", "{w}/train.dat", "--inspect.train-config", "none.toml"), "none.toml: there is no such file"),
        ((), "inspect.data: is missing"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_printed(
    words: tuple[str, ...], expected: str, look: Command, workspace: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(workspace / "tokenizer")
    Tokenizer(dict(tokenizer.vocab), tokenizer.merges, [END_OF_TEXT, "<|other|>"]).save(tmp_path / "other")
    done = look(*(word.format(w=workspace, t=tmp_path) for word in words))
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status")
def test_data_larger_than_memory_can_be_looked_at(tmp_path: Path, workspace: Path) -> None:
    """All 600 MB are looked through for ends of documents; a process that has loaded everything takes 100 MB."""
    path, num_tokens = tmp_path / "x.dat", 300_000_000
    with path.open("wb") as file:
        file.truncate(2 * num_tokens)
    sidecar = json.loads((workspace / "train.dat.json").read_text(encoding="utf-8"))
    old = {"format_version": 1, "shards": [], "num_tokens": num_tokens, "end_of_text_id": 1}
    (tmp_path / "x.dat.json").write_text(json.dumps({**sidecar, **old}), encoding="utf-8")
    program = (
        "import sys; from cli.inspect_data import main; code = main(); "
        "print(open('/proc/self/status').read(), file=sys.stderr); sys.exit(code)"
    )
    words = [sys.executable, "-c", program, "--data", str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "  long document         300,000,000 tokens from 0 on\n" in done.stdout
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None
    assert int(peak[1]) < 300_000


def test_the_settings_are_printed(look: Command) -> None:
    done = look("--data", "x.dat", "--print-config")
    assert json.loads(done.out)["inspect"]["data"] == "x.dat"
