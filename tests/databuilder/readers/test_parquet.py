"""Parquet: row groups as parts, columns of text in any of their types, and files that are not what they should be."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: uv sync --group data")

import pyarrow
from pyarrow import parquet

from databuilder.pieces import End, Reading, TextCounts
from databuilder.readers import parquet as reader
from databuilder.readers.dispatch import read_split
from databuilder.sources import describe_source
from databuilder.splits import cut_into_splits
from transformerlm.utils.errors import DataError, MissingDependencyError

DATA = Path(__file__).parents[1] / "data"
TEXTS = [f"\nStory {number} é你 " + "word " * (number % 40) for number in range(500)]


def write(path: Path, column: Any = TEXTS, kind: Any = None, **settings: Any) -> Path:
    columns = {"id": range(len(column)), "text": pyarrow.array(column, kind), "more": ["x" * 50] * len(column)}
    table = pyarrow.table(columns)
    parquet.write_table(table, path, **settings)
    return path


def read(
    name: Path | str, *, split_bytes: int = 1 << 20, counts: TextCounts | None = None, **settings: Any
) -> list[str]:
    texts, text = [], b""
    for part in cut_into_splits([describe_source(name)], split_bytes=split_bytes):
        for batch in read_split(part, Reading(**settings), counts if counts is not None else TextCounts()):
            for piece in batch:
                text += piece.text
                if piece.end is End.FINAL:
                    texts.append(text.decode())
                    text = b""
    return texts


@pytest.mark.parametrize("split_bytes", [1, 3000, 1 << 20])
def test_the_rows_of_the_parts_are_those_of_the_file(tmp_path: Path, split_bytes: int) -> None:
    path = write(tmp_path / "a.parquet", row_group_size=64)
    parts = cut_into_splits([describe_source(path)], split_bytes=split_bytes)
    assert [parts[0].begin, parts[-1].end] == [0, 8]
    assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert all(part.num_bytes >= split_bytes for part in parts[:-1])
    counts = TextCounts()
    assert read(path, split_bytes=split_bytes, counts=counts) == TEXTS
    assert counts == TextCounts(*[sum(len(text.encode()) for text in TEXTS)] * 2, documents_used=500)
    done: list[int] = []
    list(read_split(parts[0], Reading(), counts, done.append))
    assert done[-1] == parts[0].num_bytes


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.binary_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_text_has_many_types(tmp_path: Path, kind: Any) -> None:
    assert read(write(tmp_path / "a.parquet", ["one", "", "é你", "one"], kind)) == ["one", "é你", "one"]


def test_long_documents_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.pieces, "PIECE_BYTES", 10)
    assert read(write(tmp_path / "a.parquet")) == TEXTS


def test_rows_that_are_not_utf8_follow_the_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"fine", b"ab\xff", b"", b"more"], pyarrow.binary(), row_group_size=1)
    with pytest.raises(DataError, match=r"a\.parquet: not UTF-8 in row 1 at byte 2 \(invalid start byte\)"):
        read(path)
    counts = TextCounts()
    assert read(path, errors="skip", counts=counts) == ["fine", "more"]
    assert counts == TextCounts(11, 8, 0, 3, documents_used=2, documents_empty=1, documents_not_utf8=1)
    assert read(path, errors="replace") == ["fine", "ab\ufffd", "more"]


def test_a_column_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["a", None], row_group_size=1)
    with pytest.raises(DataError, match=r"no field 'body', only 'id', 'text', 'more'; set input\.text_field"):
        read(path, text_field="body")
    with pytest.raises(DataError, match="the field 'id' is of type int64, not string"):
        read(path, text_field="id")
    with pytest.raises(DataError, match=r"row 1 has no text \(null\); set input\.skip_null = true"):
        read(path)
    with pytest.raises(DataError, match=r"two_text\.parquet: the table has several columns named 'text'; rename"):
        read(DATA / "two_text.parquet")


def test_rows_without_text_may_be_skipped_and_are_counted() -> None:
    counts = TextCounts()
    texts = read(DATA / "pandas_null.parquet", skip_null=True, counts=counts)
    assert (len(texts) + counts.documents_null, len(texts)) == (50, counts.documents_used)
    assert counts.documents_null == 1
    with pytest.raises(DataError, match=r"pandas_null\.parquet: row \d+ has no text \(null\)"):
        read(DATA / "pandas_null.parquet")


def test_columns_of_string_views_are_read() -> None:
    texts = read(DATA / "string_view.parquet")
    assert (len(texts), texts[0]) == (50, "Row 0 text äö日")


@pytest.mark.parametrize("group", [[], ["a"]])
def test_a_file_without_rows_holds_no_document(tmp_path: Path, group: list[str]) -> None:
    with parquet.ParquetWriter(tmp_path / "none.parquet", pyarrow.schema({"text": pyarrow.string()})) as writer:
        for texts in ([], group, []):
            writer.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}))
    assert read(tmp_path / "none.parquet", split_bytes=1) == group


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "other.parquet").write_bytes(b"text, and no Parquet")
    for name in ("cut", "other"):
        with pytest.raises(DataError, match=rf"{name}\.parquet: damaged Parquet file \(.*download it again"):
            read(tmp_path / f"{name}.parquet")
    footer = 8 + int.from_bytes(whole[-8:-4], "little")
    (tmp_path / "inside.parquet").write_bytes(whole[:4] + b"\xff" * (len(whole) - 4 - footer) + whole[-footer:])
    with pytest.raises(DataError, match=r"inside\.parquet: .*(cannot be read|damaged)"):
        read(tmp_path / "inside.parquet")


def test_remote_files_are_read_by_ranges(tmp_path: Path, serve: Callable[..., Any]) -> None:
    write(tmp_path / "a.parquet", row_group_size=64)
    assert read(f"{serve(tmp_path).url}/a.parquet", split_bytes=3000) == TEXTS
    with pytest.raises(DataError, match=r"a\.parquet: "):
        read(f"{serve(tmp_path, keeps_back=200).url}/a.parquet")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"a\.parquet: Parquet needs pyarrow: uv sync --extra parquet"):
        read(path)
