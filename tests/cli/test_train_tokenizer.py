"""transformerlm-train-tokenizer: the same tokenizer from any format, on threads and on a cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import train_tokenizer
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe


@pytest.fixture
def train(run_main: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Trains a tokenizer of 320 entries into a folder of the name."""

    def run(name: str, source: Path, *words: object) -> Any:
        output = tmp_path / name
        where = ("--input.sources", source, "--tokenizer.output", output, "--tokenizer.vocab-size", 320)
        return run_main(train_tokenizer.main, *where, *words)

    return run


def files_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "vocab.json").read_bytes(), (folder / "merges.txt").read_bytes()


@pytest.fixture
def expected(documents: list[str], tmp_path: Path) -> tuple[bytes, bytes]:
    """The files of the tokenizer that `train_bpe` makes of the documents."""
    vocab, merges = train_bpe(iter(documents), 320, [END_OF_TEXT], num_workers=1)
    Tokenizer(vocab, merges, [END_OF_TEXT]).save(tmp_path / "expected")
    return files_of(tmp_path / "expected")


def test_any_format_gives_the_same_tokenizer(
    train: Callable[..., Any], documents: list[str], tmp_path: Path, expected: tuple[bytes, bytes]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n---\n".join(documents), encoding="utf-8", newline="")
    lines = (json.dumps({"body": text, "text": 1}) for text in documents)
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, words in (("a.txt", ["--input.separator=---"]), ("a.jsonl", ["--input.text-field", "body"])):
        done = train(f"{name}.tokenizer", tmp_path / name, *words)
        assert (done.code, done.out) == (0, ""), done.err
        assert files_of(tmp_path / f"{name}.tokenizer") == expected


def test_parquet_gives_the_same_tokenizer(
    train: Callable[..., Any], documents: list[str], tmp_path: Path, expected: tuple[bytes, bytes]
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: uv sync --group data")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": documents}), tmp_path / "a.parquet")
    done = train("tokenizer", tmp_path / "a.parquet", "--input.text-field", "body")
    assert (done.code, done.out) == (0, ""), done.err
    assert files_of(tmp_path / "tokenizer") == expected


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_cluster_trains_the_same_tokenizer(
    train: Callable[..., Any], workspace: Path, tmp_path: Path, expected: tuple[bytes, bytes]
) -> None:
    pytest.importorskip("distributed", reason="needs distributed: uv sync --group data")
    done = train("cluster", workspace / "corpus.txt", "--tokenizer.engine", "dask", "--tokenizer.workers", 2)
    assert done.code == 0, done.err
    assert files_of(tmp_path / "cluster") == expected


def test_what_is_left_out_is_said(train: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"one<|endoftext|>\n<|endoftext|>two \xff<|endoftext|>three")
    done = train("strict", source)
    assert done.code == 2
    assert "a.txt: not UTF-8 at byte 34 (invalid start byte)" in done.err
    assert not (tmp_path / "strict/vocab.json").exists()
    done = train("skip", source, "--input.errors", "skip")
    assert done.code == 0
    assert "left out: 1 documents (0.0 MB) that are not UTF-8, 1 empty documents" in done.err
    done = train("replace", source, "--input.errors", "replace")
    assert "replaced: 1 places that are not UTF-8" in done.err
    assert "will be replaced" not in done.err
    again = train("replace", source, "--input.errors", "skip")
    assert f"{tmp_path}/replace: the tokenizer that is there will be replaced\n" in again.err


def test_no_text_is_an_error(train: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n", encoding="utf-8")
    done = train("none", tmp_path / "a.txt")
    assert done.code == 2
    assert "a.txt: the text is empty" in done.err
