"""Token files hold exactly the documents, in an order of their own, and appear whole or not at all."""

import gzip
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from databuilder import build_dataset, count_total_tokens, encode, pieces
from databuilder import merge_shards as shards
from databuilder import sorted_runs as spool
from databuilder.build_directory import build_folder
from databuilder.progress import Progress
from transformerlm.token_files.index import read_info
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils import text_files as corpus
from transformerlm.utils.errors import DataError

DATA = Path(__file__).parent / "data"

Writer = Callable[[str, str], Path]


def test_documents_come_back_from_the_file_each_with_its_end(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    source = write("a.txt", END_OF_TEXT.join(documents))
    report = build_dataset([source], tokenizer, tmp_path / "train.dat")
    assert oracle.read_ids(tmp_path / "train.dat") == oracle.ids_of(oracle.shuffled(documents), tokenizer)
    info = report.train
    assert info == read_info(tmp_path / "train.dat")
    assert report.valid is None
    assert (info.dtype, info.vocab_size, info.end_of_text_id) == ("uint16", 320, 319)
    assert info.max_token_id == 319
    assert info.num_text_bytes == sum(len(document.encode("utf-8")) for document in documents)
    assert info.tokenizer_sha256 == tokenizer.sha256()
    assert info.sources == [{"path": str(source), "bytes": source.stat().st_size}]
    assert info.split == {
        "separator": END_OF_TEXT, "text_field": "text", "errors": "strict", "skip_null": False,
        "valid_fraction": 0.0, "shuffle": True, "seed": 0, "part": "train",
    }  # fmt: skip
    assert count_total_tokens([source], tokenizer) == info.num_tokens
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.txt", "train.dat", "train.dat.documents", "train.dat.json"
    }  # fmt: skip


def test_without_shuffling_documents_stay_in_the_order_of_the_sources(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    sources = [write("b.txt", END_OF_TEXT.join(documents[:100])), write("a.txt", END_OF_TEXT.join(documents[100:]))]
    build_dataset(sources, tokenizer, tmp_path / "t.dat", shuffle=False)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == documents
    build_dataset(sources, tokenizer, tmp_path / "t.dat", seed=1)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == oracle.shuffled(documents, seed=1)


def test_line_ends_inside_a_document_survive(write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any) -> None:
    build_dataset([write("a.txt", f"a\r\nb\n\nc{END_OF_TEXT}\r\nd")], tokenizer, tmp_path / "t.dat", shuffle=False)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == ["a\r\nb\n\nc", "d"]


def test_a_special_token_in_the_text_is_plain_text(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    source = write("a.txt", f"before {END_OF_TEXT} after\n###\nnext")
    report = build_dataset([source], tokenizer, tmp_path / "t.dat", separator="###", shuffle=False)
    assert report.train.num_documents == 2
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == [f"before {END_OF_TEXT} after", "next"]
    assert count_total_tokens([source], tokenizer, separator="###") == report.train.num_tokens


def test_any_form_of_the_same_documents_gives_the_same_tokens(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = END_OF_TEXT.join(documents)
    lines = "\n".join(json.dumps({"text": document}) for document in documents)
    paths = [write("a.txt", text), tmp_path / "a.txt.gz", tmp_path / "a.txt.zst", write("a.jsonl", lines)]
    paths[1].write_bytes(gzip.compress(text.encode("utf-8")))
    paths[2].write_bytes(zstandard.compress(text.encode("utf-8")))
    digests = {build_dataset([path], tokenizer, tmp_path / "t.dat").train.data_sha256 for path in paths}
    several = [write("1.txt", END_OF_TEXT.join(documents[200:])), write("2.txt", END_OF_TEXT.join(documents[:200]))]
    digests.add(build_dataset(several, tokenizer, tmp_path / "t.dat").train.data_sha256)
    assert len(digests) == 1


def test_more_sources_move_no_document_across_nor_change_the_order_of_others(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    def sides(*texts: list[str]) -> tuple[list[str], list[str]]:
        sources = [write(f"{number}.txt", END_OF_TEXT.join(text)) for number, text in enumerate(texts)]
        train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
        build_dataset(sources, tokenizer, train, valid=valid, valid_fraction=0.2)
        return oracle.documents_of(train, tokenizer), oracle.documents_of(valid, tokenizer)

    train, valid = sides(documents[:200])
    assert set(valid) == {document for document in documents[:200] if oracle.is_validation(document, 0.2)}
    assert 20 <= len(valid) <= 60
    assert sorted(train + valid) == sorted(documents[:200])
    more_train, more_valid = sides(documents[200:], documents[:200])
    assert [document for document in more_train if document in train] == train
    assert [document for document in more_valid if document in valid] == valid


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("fraction", [1e-9, 0.05, 0.999999, 1 - 2**-53])
@pytest.mark.parametrize("number", [2, 8, 20])
def test_neither_side_of_a_small_corpus_is_empty(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any, number: int, fraction: float, shuffle: bool
) -> None:
    """The document whose hash is nearest changes sides, with its copies, and no other does."""
    texts = [f"text {n}" for n in range(number)]
    sources = [write(f"{n}.txt", END_OF_TEXT.join([text] * (1 + n % 3))) for n, text in enumerate(texts)]
    train, valid, said = tmp_path / "t.dat", tmp_path / "v.dat", []

    def sides(sources: list[Path]) -> tuple[set[str], set[str]]:
        build_dataset(sources, tokenizer, train, valid=valid, valid_fraction=fraction, shuffle=shuffle, log=said.append)
        return set(oracle.documents_of(train, tokenizer)), set(oracle.documents_of(valid, tokenizer))

    in_train, in_valid = sides(sources)
    assert not in_train & in_valid
    assert in_train | in_valid == set(texts)
    by_hash = {text for text in texts if oracle.is_validation(text, fraction)}
    taken = in_valid ^ by_hash
    if by_hash and len(by_hash) < number:
        assert not taken
    else:
        assert len(taken) == 1
        assert any("the document with the nearest hash goes there" in line for line in said)
    more_train, more_valid = sides([*sources, write("more.txt", END_OF_TEXT.join(f"more {n}" for n in range(30)))])
    assert in_train - taken <= more_train
    assert in_valid - taken <= more_valid


def test_a_small_corpus_is_split_the_same_after_any_interruption(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it stops while the parts with the nearest document are encoded anew."""
    texts = [f"text {n % 4}" for n in range(8)]  # of each document a copy in another part
    sources = [write(f"{n}.txt", text) for n, text in enumerate(texts)]
    encode_split, calls = encode.encode_split, 0

    def build() -> str:
        report = build_dataset(
            sources, tokenizer, tmp_path / "t.dat", valid=tmp_path / "v.dat", valid_fraction=1e-9, workers=1
        )
        assert report.valid is not None
        assert (report.train.num_documents, report.valid.num_documents) == (6, 2)
        return report.train.data_sha256 + report.valid.data_sha256

    whole = build()
    for stop_at in range(1, 11):  # eight parts, and two of them once more
        calls = 0

        def stop(job: Any, part: Any, stop_at: int = stop_at) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return encode_split(job, part)

        with monkeypatch.context() as patch:
            patch.setattr("databuilder.build.encode_split", stop)
            with pytest.raises(KeyboardInterrupt):
                build()
        assert build() == whole


def test_files_without_documents_are_read_and_named(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    sources = [write("a.txt", "one"), write("empty.txt", ""), write("blank.jsonl", "\n\n"), write("z.txt", "two")]
    (tmp_path / "none.txt.gz").write_bytes(gzip.compress(b""))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    sources += [tmp_path / "none.txt.gz", tmp_path / "none.parquet"]
    said: list[str] = []
    build_dataset(sources, tokenizer, tmp_path / "t.dat", shuffle=False, log=said.append)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == ["one", "two"]
    assert said == [f"without any document: {sources[1]}, {sources[2]}, {sources[4]}, and 1 more"]


def test_a_byte_order_mark_is_no_text(tokenizer: Tokenizer, tmp_path: Path, oracle: Any) -> None:
    report = build_dataset([DATA / "bom.txt", DATA / "bom.jsonl"], tokenizer, tmp_path / "t.dat", shuffle=False)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == ["one", "two", "one"]
    text = report.train.text
    assert text["bytes_read"] == (DATA / "bom.txt").stat().st_size + 3
    assert text["bytes_used"] + text["bytes_separators"] == text["bytes_read"]


def test_equal_documents_stay_on_one_side(write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any) -> None:
    texts = [f"text {number % 20}" for number in range(200)]
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    build_dataset([write("a.txt", END_OF_TEXT.join(texts))], tokenizer, train, valid=valid, valid_fraction=0.3)
    in_train, in_valid = oracle.documents_of(train, tokenizer), oracle.documents_of(valid, tokenizer)
    assert not set(in_train) & set(in_valid)
    assert sorted(in_train + in_valid) == sorted(texts)


def test_of_a_single_document_the_end_is_for_validation(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    text = "\n".join(f"line {number}" for number in range(200))
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    report = build_dataset([write("a.txt", text)], tokenizer, train, valid=valid, valid_fraction=0.1, shard_tokens=50)
    [first], [last] = oracle.documents_of(train, tokenizer), oracle.documents_of(valid, tokenizer)
    assert first + last == text
    assert first.endswith("\n")
    assert len(last) == pytest.approx(0.1 * len(text), abs=20)
    assert report.valid is not None
    assert (report.train.num_text_bytes, report.valid.num_text_bytes) == (len(first), len(last))
    end = tokenizer.eos_token_id
    assert [*oracle.read_ids(train)[:-1], *oracle.read_ids(valid)] == [*tokenizer.encode(text), end]


def test_a_single_line_is_cut_anywhere(write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any) -> None:
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    build_dataset([write("a.txt", "word " * 99 + "end")], tokenizer, train, valid=valid, valid_fraction=0.5)
    [first], [last] = oracle.documents_of(train, tokenizer), oracle.documents_of(valid, tokenizer)
    assert first + last == "word " * 99 + "end"
    assert len(first) == pytest.approx(len(last), abs=10)


def test_validation_from_files_of_its_own(write: Writer, tokenizer: Tokenizer, tmp_path: Path, oracle: Any) -> None:
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    sources, valid_sources = [write("a.txt", "one")], [write("b.txt", f"two{END_OF_TEXT}three{END_OF_TEXT}\n")]
    report = build_dataset(
        sources, tokenizer, train, valid=valid, valid_sources=valid_sources, valid_fraction=0.5, shuffle=False
    )
    assert oracle.documents_of(train, tokenizer) == ["one"]
    assert oracle.documents_of(valid, tokenizer) == ["two", "three"]
    assert report.valid is not None
    assert [source["path"] for source in report.train.sources] == [str(sources[0])]
    assert [source["path"] for source in report.valid.sources] == [str(valid_sources[0])]
    assert report.train.split["valid_fraction"] == 0.0
    assert (report.train.text["bytes_read"], report.valid.text["bytes_read"]) == (3, valid_sources[0].stat().st_size)


def test_every_byte_read_is_used_or_counted_as_dropped(
    tokenizer: Tokenizer, tmp_path: Path, documents: list[str]
) -> None:
    good = [document.encode("utf-8") for document in documents[:50]]
    data = b"\n---\n".join([*good, b"", b"\n", b"caf\xe9", *good[:3], b"\xff" * 10])
    (tmp_path / "a.txt").write_bytes(data)
    train, valid = tmp_path / "t.dat", tmp_path / "v.dat"
    report = build_dataset(
        [tmp_path / "a.txt"], tokenizer, train, valid=valid, valid_fraction=0.3, separator="---", errors="skip"
    )
    assert report.valid is not None
    text = report.train.text
    assert text == report.valid.text
    assert text["bytes_read"] == len(data)
    assert text["bytes_read"] == sum(count for name, count in text.items() if name.startswith("bytes_")) / 2
    assert text["bytes_used"] == report.train.num_text_bytes + report.valid.num_text_bytes
    assert text["documents_used"] == report.train.num_documents + report.valid.num_documents == 53
    assert (text["documents_empty"], text["documents_not_utf8"]) == (2, 2)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=25),
    shard_tokens=st.integers(9, 300),
    run_ids=st.sampled_from([40, 64, 1000]),
    batch_bytes=st.sampled_from([1, 30, 1000]),
    shuffle=st.booleans(),
    copies=st.booleans(),
)
def test_shards_joined_are_the_single_file(
    lengths: list[int],
    shard_tokens: int,
    run_ids: int,
    batch_bytes: int,
    shuffle: bool,
    copies: bool,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    oracle: Any,
) -> None:
    """Whatever the sizes of shards, runs, batches, pieces and chunks, in which long documents come to lie anyhow."""
    folder = tmp_path_factory.mktemp("shards")
    documents = [f"{0 if copies else number}" + " cat" * length for number, length in enumerate(lengths)]
    source = folder / "a.txt"
    source.write_text(END_OF_TEXT.join(documents), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "RUN_IDS", run_ids)
        patch.setattr(spool, "MAX_VECTORS", 3)
        patch.setattr(shards, "CHUNK_IDS", 7)
        patch.setattr(shards, "MAX_CHUNK_IDS", 11)
        patch.setattr(encode, "BATCH_BYTES", batch_bytes)
        patch.setattr(pieces, "PIECE_BYTES", 50)
        patch.setattr(corpus, "READ_BYTES", 30)
        build_dataset([source], tokenizer, folder / "t.dat", shuffle=shuffle, shard_tokens=shard_tokens)
    expected = oracle.ids_of(oracle.shuffled(documents) if shuffle else documents, tokenizer)
    assert oracle.read_ids(folder / "t.dat") == expected
    sizes = [shard.num_tokens for shard in read_info(folder / "t.dat").shards]
    assert sizes[:-1] == [shard_tokens] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= shard_tokens


def test_a_dropped_document_leaves_nothing_however_long_it_was(
    tokenizer: Tokenizer, tmp_path: Path, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RUN_IDS", 300)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    monkeypatch.setattr(corpus, "READ_BYTES", 50)
    parts = [b"one", b"cat " * 40 + b"\xff", b"two", b"dog " * 4000 + b"\xff" + b"dog " * 90, b"three" * 900, b"four"]
    (tmp_path / "a.txt").write_bytes(b"--".join(parts))
    build_dataset([tmp_path / "a.txt"], tokenizer, tmp_path / "t.dat", separator="--", errors="skip", shuffle=False)
    assert oracle.documents_of(tmp_path / "t.dat", tokenizer) == ["one", "two", "three" * 900, "four"]


def test_files_of_an_older_build_go_when_the_new_ones_are_there(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, oracle: Any
) -> None:
    source = write("a.txt", END_OF_TEXT.join(documents))
    (tmp_path / "t.99999.dat").write_text("not of the build")
    for shard_tokens, number_of_files in ((500, None), (2000, None), (10**6, 1), (900, None)):
        info = build_dataset([source], tokenizer, tmp_path / "t.dat", shard_tokens=shard_tokens).train
        assert number_of_files in (None, len(info.shards))
        names = {name for shard in info.shards for name in (shard.name, f"{shard.name}.documents")}
        assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "t.dat.json", "t.99999.dat", *names}
        assert oracle.read_ids(tmp_path / "t.dat") == oracle.ids_of(oracle.shuffled(documents), tokenizer)


@pytest.mark.parametrize(
    ("text", "valid_text", "fraction", "message"),
    [
        (f"\n{END_OF_TEXT}\n", None, 0.0, r"a\.txt: no document is left for training"),
        (END_OF_TEXT.join(["same"] * 400), None, 0.3, r"all 400 documents are duplicates of one, .* leave the dup"),
        ("a", "\n", 0.0, r"b\.txt: holds no document for validation"),
        ("a", None, 0.5, "the only document is too short to cut its end off for validation"),
        ("", None, 0.5, r"a\.txt: no document is left for training; is the text empty"),
        ("a", None, 1.0, r"valid_fraction must be at least 0 and below 1 \(got 1\.0\)"),
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
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_source_that_breaks_off_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text " * 1000)[:-10])
    with pytest.raises(DataError, match=r"a\.txt\.gz: damaged compressed file"):
        build_dataset([path], tokenizer, tmp_path / "out/t.dat")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_that_changes_meanwhile_is_named(
    write: Writer, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write("a.txt", "text")
    run = encode._SplitEncoder.run

    def change(self: Any) -> Any:
        summary = run(self)
        source.write_text("mine")
        return summary

    monkeypatch.setattr(encode._SplitEncoder, "run", change)
    with pytest.raises(DataError, match=r"a\.txt: was changed while it was read; start again"):
        build_dataset([source], tokenizer, tmp_path / "out/t.dat")
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


def test_an_output_that_is_a_source_or_a_folder_is_refused(write: Writer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write("a.txt", "x")
    with pytest.raises(DataError, match=r"a\.txt: is one of the sources, and would be overwritten"):
        build_dataset([source], tokenizer, source)
    with pytest.raises(DataError, match=r"is a folder; name a file in it"):
        build_dataset([source], tokenizer, tmp_path)
    with pytest.raises(DataError, match="is given both for training and for validation"):
        build_dataset([source], tokenizer, tmp_path / "t.dat", valid=tmp_path / "v.dat", valid_sources=[source])
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_progress_ends_at_everything_in_both_phases(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sources = [write("a.txt", END_OF_TEXT.join(documents)), write("b.txt", "b")]
    told: list[Progress] = []
    info = build_dataset(sources, tokenizer, tmp_path / "t.dat", progress=told.append).train
    for phase in ("encode", "write"):
        of_phase = [progress for progress in told if progress.phase == phase]
        shares = [progress.share for progress in of_phase]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert of_phase[-1].num_bytes == sum(path.stat().st_size for path in sources)
        assert of_phase[-1].num_documents == info.num_documents
    assert told[-1].num_tokens == info.num_tokens


def test_the_folder_of_the_work_is_beside_the_output(tmp_path: Path) -> None:
    assert build_folder(tmp_path / "x/t.dat") == tmp_path / "x/t.dat.build"


def test_a_file_system_may_give_less_than_it_is_asked_for(
    write: Writer, documents: list[str], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As file systems of the network do; only an end of the file is damage."""
    source = write("a.txt", END_OF_TEXT.join(documents))
    expected = build_dataset([source], tokenizer, tmp_path / "t.dat").train.data_sha256
    preadv = os.preadv

    def read_less(file: int, buffers: list[memoryview], offset: int) -> int:
        first = next(buffer for buffer in buffers if len(buffer))
        return preadv(file, [first[: 1 + offset % 7]], offset)

    monkeypatch.setattr(os, "preadv", read_less)
    assert build_dataset([source], tokenizer, tmp_path / "t.dat").train.data_sha256 == expected
    monkeypatch.setattr(os, "preadv", lambda *_arguments: 0)
    with pytest.raises(DataError, match="ends early; remove its folder"):
        build_dataset([source], tokenizer, tmp_path / "t.dat")
