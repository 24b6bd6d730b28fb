"""Token files hold exactly the documents, whoever encodes them, and appear whole or not at all."""

import gzip
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from databuilder import build_dataset, count_total_tokens, dataset_builder
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import DataError
from transformerlm.utils.token_file import open_tokens, read_info, verify_data

Writer = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a text file and returns its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8"))
        return path

    return write


def documents_of(path: Path, tokenizer: Tokenizer) -> list[str]:
    info = read_info(path)
    verify_data(path, info)
    ids = open_tokens(path, info)
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    assert ends[-1] == len(ids) - 1, "the last document has no end"
    assert len(ends) == info.num_documents
    starts = [0, *(ends[:-1] + 1)]
    return [tokenizer.decode(ids[start:end].tolist()) for start, end in zip(starts, ends, strict=True)]


def test_documents_come_back_from_the_file_each_with_its_end(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = write("a.txt", END_OF_TEXT.join(documents))
    report = build_dataset([source], tokenizer, tmp_path / "train.dat")
    assert documents_of(tmp_path / "train.dat", tokenizer) == documents
    info = report.train
    assert info == read_info(tmp_path / "train.dat")
    assert report.valid is None
    assert (info.dtype, info.vocab_size, info.end_of_text_id) == ("uint16", 320, 319)
    assert info.max_token_id == 319
    assert info.num_text_bytes == sum(len(document.encode("utf-8")) for document in documents)
    assert info.tokenizer_sha256 == tokenizer.sha256()
    assert info.sources == [{"path": str(source), "bytes": source.stat().st_size}]
    assert count_total_tokens([source], tokenizer) == info.num_tokens


def test_line_ends_inside_a_document_survive(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_dataset([write("a.txt", f"a\r\nb\n\nc{END_OF_TEXT}\r\nd")], tokenizer, tmp_path / "t.dat")
    assert documents_of(tmp_path / "t.dat", tokenizer) == ["a\r\nb\n\nc", "d"]


def test_a_special_token_in_the_text_is_plain_text(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = f"before {END_OF_TEXT} after\n###\nnext"
    source = write("a.txt", text)
    report = build_dataset([source], tokenizer, tmp_path / "t.dat", separator="###")
    assert report.train.num_documents == 2
    assert documents_of(tmp_path / "t.dat", tokenizer) == [f"before {END_OF_TEXT} after", "next"]
    assert count_total_tokens([source], tokenizer, separator="###") == report.train.num_tokens


def test_compressed_files_give_the_same_tokens(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = END_OF_TEXT.join(documents)
    paths = [write("a.txt", text), tmp_path / "a.txt.gz", tmp_path / "a.txt.zst"]
    paths[1].write_bytes(gzip.compress(text.encode("utf-8")))
    paths[2].write_bytes(zstandard.compress(text.encode("utf-8")))
    digests = {build_dataset([path], tokenizer, tmp_path / "t.dat").train.data_sha256 for path in paths}
    assert len(digests) == 1


def test_validation_is_chosen_by_the_documents_text(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def sides(*texts: list[str]) -> tuple[list[str], list[str]]:
        sources = [write(f"{number}.txt", END_OF_TEXT.join(text)) for number, text in enumerate(texts)]
        train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
        build_dataset(sources, tokenizer, train, valid=valid, valid_fraction=0.2)
        return documents_of(train, tokenizer), documents_of(valid, tokenizer)

    train, valid = sides(documents[:200])
    assert sorted(train + valid) == sorted(documents[:200])
    assert 20 <= len(valid) <= 60
    more_train, more_valid = sides(documents[200:], documents[:200])
    assert set(train) <= set(more_train)
    assert set(valid) <= set(more_valid)


def test_equal_documents_stay_on_one_side(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [f"text {number % 20}" for number in range(200)]
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    build_dataset([write("a.txt", END_OF_TEXT.join(texts))], tokenizer, train, valid=valid, valid_fraction=0.3)
    assert not set(documents_of(train, tokenizer)) & set(documents_of(valid, tokenizer))


def test_of_a_single_document_the_end_is_for_validation(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(200))
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    build_dataset([write("a.txt", text)], tokenizer, train, valid=valid, valid_fraction=0.1)
    [first], [last] = documents_of(train, tokenizer), documents_of(valid, tokenizer)
    assert f"{first}\n{last}" == text
    assert len(last) == pytest.approx(0.1 * len(text), abs=10)


def test_validation_from_files_of_its_own(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    sources, valid_sources = [write("a.txt", "one")], [write("b.txt", f"two{END_OF_TEXT}three")]
    report = build_dataset(sources, tokenizer, train, valid=valid, valid_sources=valid_sources, valid_fraction=0.5)
    assert documents_of(train, tokenizer) == ["one"]
    assert documents_of(valid, tokenizer) == ["two", "three"]
    assert report.valid is not None
    assert [source["path"] for source in report.valid.sources] == [str(valid_sources[0])]
    assert report.train.split == {"separator": END_OF_TEXT, "valid_fraction": 0.0, "part": "train"}


@pytest.mark.parametrize(
    ("text", "valid_text", "fraction", "message"),
    [
        ("", None, 0.0, "no document is left for training"),
        (f"{END_OF_TEXT}\n{END_OF_TEXT}", None, 0.0, "no document is left for training"),
        (f"a{END_OF_TEXT}b", None, 1e-9, "none of 2 documents fell to validation"),
        ("a", "\n", 0.0, r"b\.txt: holds no document for validation"),
    ],
)
def test_an_empty_side_is_an_error_and_nothing_is_written(
    text: str,
    valid_text: str | None,
    fraction: float,
    message: str,
    write: Writer,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    valid_sources = [] if valid_text is None else [write("b.txt", valid_text)]
    with_valid = valid_text is not None or fraction > 0
    with pytest.raises(DataError, match=message):
        build_dataset(
            [write("a.txt", text)],
            tokenizer,
            tmp_path / "out/t.dat",
            valid=tmp_path / "out/v.dat" if with_valid else None,
            valid_sources=valid_sources,
            valid_fraction=fraction,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_half_way_leaves_the_previous_files(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write("a.txt", END_OF_TEXT.join(documents))
    out = tmp_path / "out"
    build_dataset([source], tokenizer, out / "t.dat", valid=out / "v.dat", valid_fraction=0.2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    encode, calls = dataset_builder._encode_batch, []

    def failing(batch: Any, tokenizer: Tokenizer) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("the power went")
        return encode(batch, tokenizer)

    monkeypatch.setattr(dataset_builder, "_encode_batch", failing)
    monkeypatch.setattr(dataset_builder, "BATCH_CHARS", 500)
    with pytest.raises(RuntimeError, match="the power went"):
        build_dataset([source], tokenizer, out / "t.dat", valid=out / "v.dat", valid_fraction=0.3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_source_that_breaks_off_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text " * 1000)[:-10])
    with pytest.raises(DataError, match=r"a\.txt\.gz: damaged compressed file"):
        build_dataset([path], tokenizer, tmp_path / "out/t.dat")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_seen_before_the_work(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1000, 1000, 0))
    with pytest.raises(DataError, match=r"the data needs about .* the disk has 0\.0 MB free"):
        build_dataset([write("a.txt", "text " * 100)], tokenizer, tmp_path / "out/t.dat")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_end_of_text_is_refused(write: Writer, tmp_path: Path) -> None:
    bare = Tokenizer({token: bytes([token]) for token in range(256)}, [], [])
    with pytest.raises(DataError, match=r"the tokenizer has no <\|endoftext\|> token; train it"):
        build_dataset([write("a.txt", "x")], bare, tmp_path / "t.dat")


def test_progress_ends_at_all_bytes_and_all_tokens_but_the_last_batch(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sources = [write("a.txt", END_OF_TEXT.join(documents)), write("b.txt", "b")]
    told: list[tuple[int, int, int]] = []
    build_dataset(sources, tokenizer, tmp_path / "t.dat", progress=lambda *numbers: told.append(numbers))
    total = sum(path.stat().st_size for path in sources)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (total, total)


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_files(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_builder, "SMALL_BYTES", 0)
    monkeypatch.setattr(dataset_builder, "BATCH_CHARS", 2000)
    source = write("a.txt", END_OF_TEXT.join(documents))
    written = []
    for workers in (1, 2, 3):
        train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
        build_dataset([source], tokenizer, train, valid=valid, valid_fraction=0.2, workers=workers)
        sidecars = [json.loads(path.with_name(path.name + ".json").read_text()) for path in (train, valid)]
        written.append((train.read_bytes(), valid.read_bytes(), sidecars))
    assert written[0] == written[1] == written[2]
