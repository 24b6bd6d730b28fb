"""Reading parts of sources: the same documents from any format, packing, place and parts; and what goes wrong."""

import gzip
import json
import lzma
import pickle
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from databuilder.pieces import End, Piece, Reading, TextCounts
from databuilder.readers.dispatch import read_split
from databuilder.source_file import InputSplit
from databuilder.sources import describe_source, resolve_sources
from databuilder.splits import cut_into_splits
from transformerlm.utils import text_files as corpus
from transformerlm.utils.errors import DataError

DOCUMENTS = [f"Story {number}.\r\n" + "é你 word " * (number % 50) + "." for number in range(400)]
TEXT = "\n<|endoftext|>\n".join(DOCUMENTS).encode()
LINES = b"".join(json.dumps({"id": number, "text": text}).encode() + b"\n" for number, text in enumerate(DOCUMENTS))

DATA = Path(__file__).parents[1] / "data"
Serve = Callable[..., Any]


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "READ_BYTES", 4096)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def joined(batches: Iterable[list[Piece]]) -> list[str]:
    found, text = [], b""
    for batch in batches:
        for piece in batch:
            text += piece.text
            if piece.end is not End.OPEN:
                found += [text.decode()] if piece.end is End.FINAL else []
                text = b""
    assert not text
    return found


def read(parts: list[InputSplit], reading: Reading | None = None, counts: TextCounts | None = None) -> list[str]:
    found = []
    for part in parts:
        found += joined(read_split(part, reading or Reading(), counts or TextCounts()))
    return found


def read_whole(path: Path | str, **settings: Any) -> list[str]:
    return read(cut_into_splits([describe_source(path)]), Reading(**settings))


@pytest.mark.parametrize(("kind", "data"), [("txt", TEXT), ("jsonl", LINES)])
@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress), (".xz", lzma.compress)]
)
def test_every_format_and_packing_gives_the_documents(
    tmp_path: Path, kind: str, data: bytes, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(data)
    parts = cut_into_splits([describe_source(write(tmp_path / f"a.{kind}{suffix}", packed))], split_bytes=5000)
    assert (len(parts) == 1) == bool(suffix)
    assert sum(part.num_bytes for part in parts) == len(packed)
    counts, seen, found = TextCounts(), [], []
    for part in parts:
        done: list[int] = []
        found += joined(read_split(part, Reading(), counts, done.append))
        assert done == sorted(done)
        seen.append(done[-1])
    assert found == DOCUMENTS
    assert sum(seen) == len(packed)
    assert counts.documents_used == len(DOCUMENTS)
    assert counts.bytes_used == sum(len(text.encode()) for text in DOCUMENTS)
    assert kind == "jsonl" or counts.bytes_read == len(data)


def test_parts_are_numbered_and_can_be_pickled(tmp_path: Path) -> None:
    files = [describe_source(write(tmp_path / name, TEXT)) for name in ("a.txt", "b.txt")]
    parts = cut_into_splits(files, split_bytes=len(TEXT) // 2)
    assert [(part.number, part.begin, part.end) for part in parts[:3]] == [
        (0, 0, len(TEXT) // 2),
        (1, len(TEXT) // 2, 2 * (len(TEXT) // 2)),
        (2, 2 * (len(TEXT) // 2), len(TEXT)),
    ]
    assert [part.number for part in parts] == list(range(6))
    assert read(pickle.loads(pickle.dumps(parts))) == DOCUMENTS * 2


VALUES = st.sampled_from(["", "a", "é\n你", "\r\n", '"quoted"', "<|endoftext|>", "\u2028", "x" * 30])


@given(texts=st.lists(VALUES), blank=st.booleans(), split_bytes=st.integers(1, 90), read_bytes=st.integers(1, 60))
def test_lines_of_any_parts_are_those_of_the_file(
    texts: list[str], blank: bool, split_bytes: int, read_bytes: int
) -> None:
    lines = [json.dumps({"text": text, "more": {"text": 1}}, ensure_ascii=len(text) % 2 == 0) for text in texts]
    data = ("\n\r\n" if blank else "\n").join([*lines, "" if blank else '{"text":"last"}']).encode()
    fsspec.filesystem("memory").pipe("/lines.jsonl", data or b"\n")
    counts = TextCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "READ_BYTES", read_bytes)
        parts = cut_into_splits([describe_source("memory://lines.jsonl")], split_bytes=split_bytes)
        found = read(parts, counts=counts)
    assert found == [text for text in [*texts, *([] if blank else ["last"])] if text]
    assert counts.documents_empty == texts.count("")
    assert counts.bytes_read == counts.bytes_used == sum(len(text.encode()) for text in found)


def test_memory_is_bounded_whatever_the_size_of_a_document(tmp_path: Path) -> None:
    sizes = {}
    for megabytes in (8, 32):
        text = b"A line of text that goes on.\n" * (megabytes << 20 >> 5)
        packed = write(tmp_path / f"{megabytes}.txt.zst", zstandard.compress(text))
        part = cut_into_splits([describe_source(packed)])[0]
        tracemalloc.start()
        length = sum(len(piece.text) for batch in read_split(part, Reading(), TextCounts()) for piece in batch)
        sizes[megabytes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert length == len(text) - 1
    assert sizes[32] < 1.2 * sizes[8]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"the record at byte 14 is not JSON \(.*every line must be a JSON object"),
        (b"[1, 2]", "the record at byte 14 is not a JSON object"),
        (b'{"body": 1, "id": 2}', "the record at byte 14 has no field 'text', only 'body', 'id'; set input.text_field"),
        (b'{"text": ["a"]}', r"the record at byte 14 has \[\"a\"\] in its field 'text', not a text"),
        (b'{"text": null}', "the record at byte 14 has null in its field 'text', not a text"),
        (b'{"text": "\xff"}', "a.jsonl: not UTF-8 in the record at byte 14 .*set input.errors to replace or skip"),
        (rb'{"text": "\ud800"}', "a.jsonl: not UTF-8 in the record at byte 14 "),
        (b"[" * 100_000, "the record at byte 14 is not JSON"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_with_its_place(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text":"one"}'[:13] + b"\n" + line + b"\n")
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        read_whole(path)


def test_records_that_are_not_utf8_are_replaced_or_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        b'{"text": "a\xffb\xe4\xbd"}\n{"text": "\\ud83d\\ude00 \\ud800"}\n{"text": "\xef\xbf\xbd", "id": "\xff"}\n',
    )
    for errors, expected, counted in (
        (
            "replace",
            ["a\ufffdb\ufffd", "😀 \ufffd", "\ufffd"],
            TextCounts(19, 19, documents_used=3, characters_replaced=3),
        ),
        ("skip", ["\ufffd"], TextCounts(14, 3, 0, 11, documents_used=1, documents_not_utf8=2)),
    ):
        counts = TextCounts()
        assert read(cut_into_splits([describe_source(path)]), Reading(errors=errors), counts) == expected  # type: ignore[arg-type]
        assert counts == counted


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.txt.gz", gzip.compress(TEXT)[:-20]),
        ("cut.jsonl.zst", zstandard.compress(LINES)[:-5]),
        ("cut.txt.xz", lzma.compress(TEXT)[:-20]),
    ],
)
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=rf"{name}: damaged compressed file"):
        read_whole(write(tmp_path / name, data))


@pytest.mark.parametrize(("name", "pack"), [("a.txt.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_a_packed_file_without_text_holds_no_document(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    assert read_whole(write(tmp_path / name, pack(b""))) == []
    assert read_whole(write(tmp_path / name, b"")) == []


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("split_bytes", [100, 700, 5000, 1 << 20])
def test_a_byte_order_mark_moves_no_document_to_another_part(tmp_path: Path, kind: str, split_bytes: int) -> None:
    path = write(tmp_path / f"a.{kind}", b"\xef\xbb\xbf" + (TEXT if kind == "txt" else LINES))
    counts = TextCounts()
    assert read(cut_into_splits([describe_source(path)], split_bytes=split_bytes), counts=counts) == DOCUMENTS
    if kind == "txt":
        assert counts.bytes_read == path.stat().st_size == counts.bytes_used + counts.bytes_separators
    assert read_whole(write(path, b"\xef\xbb\xbf")) == []


def test_records_without_text_may_be_skipped_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": null}\n\n{"text": "two"}\n')
    with pytest.raises(DataError, match=r"byte 16 has null in .*, not a text; set input\.skip_null = true"):
        read_whole(path)
    counts = TextCounts()
    assert read([*cut_into_splits([describe_source(path)])], Reading(skip_null=True), counts) == ["one", "two"]
    assert counts == TextCounts(6, 6, documents_used=2, documents_null=1)
    for wrong in (b'{"text": 1}', b'{"body": null}'):
        with pytest.raises(DataError, match=r"has 1 in its field|no field 'text'"):
            read_whole(write(path, wrong), skip_null=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arch.tar.gz", r"arch\.tar\.gz: is an archive \(tar\): unpack it, or name its members as tar://"),
        ("utf16le_nobom.txt", r"utf16le_nobom\.txt: looks like UTF-16"),
    ],
)
def test_what_is_no_text_is_refused_whatever_the_policy(name: str, message: str) -> None:
    for errors in ("strict", "replace", "skip"):
        with pytest.raises(DataError, match=message):
            read_whole(DATA / name, errors=errors)


def test_the_members_of_an_archive_are_sources() -> None:
    members = resolve_sources([f"tar://*.txt::file://{DATA / 'arch.tar.gz'}"])
    assert [file.name.partition("::")[0] for file in members] == ["tar://a.txt", "tar://b.txt"]
    assert len(read(cut_into_splits(members))) == 80


def test_capitals_in_a_suffix_change_nothing() -> None:
    assert read_whole(DATA / "UPPER.TXT.GZ") == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst"])
def test_a_file_that_has_changed_is_named(tmp_path: Path, name: str) -> None:
    halves = [zstandard.compress(TEXT)] * 2 if name.endswith("zst") else [TEXT] * 2
    parts = cut_into_splits([describe_source(write(tmp_path / name, b"".join(halves)))])
    write(tmp_path / name, halves[0])
    size = len(halves[0])
    with pytest.raises(DataError, match=rf"a\.txt.*: ends at byte {size}, not at {2 * size}: it is truncated"):
        read(parts)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"a\.txt.*: cannot be read \(No such file"):
        read(parts)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_parts_of_a_remote_file_are_read_by_ranges(tmp_path: Path, serve: Serve, kind: str) -> None:
    write(tmp_path / f"a.{kind}", TEXT if kind == "txt" else LINES)
    server = serve(tmp_path)
    source = describe_source(f"{server.url}/a.{kind}")
    parts = cut_into_splits([source], split_bytes=source.num_bytes // 4 + 1)
    assert len(parts) == 4
    assert read(parts) == DOCUMENTS
    separator = 1 if kind == "jsonl" else len("<|endoftext|>")
    assert server.requests[-1] == f"GET /a.{kind} bytes={parts[3].begin - separator}-"
    assert read(cut_into_splits([source]), Reading()) == DOCUMENTS


def test_a_server_without_ranges_gives_the_file_whole(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "a.txt", TEXT)
    source = describe_source(f"{serve(tmp_path, ranges=False).url}/a.txt")
    parts = cut_into_splits([source], split_bytes=1000)
    assert len(parts) == 1
    assert read(parts) == DOCUMENTS
    with pytest.raises(DataError, match="the server ignored the request for a range from byte 4987"):
        read([InputSplit(source, 0, 5000, 6000, 1000)])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.txt.zst"])
def test_a_server_may_keep_the_size_to_itself(tmp_path: Path, serve: Serve, name: str) -> None:
    data = {"a.txt": TEXT, "a.jsonl.gz": gzip.compress(LINES), "a.txt.zst": zstandard.compress(TEXT)}[name]
    write(tmp_path / name, data)
    write(tmp_path / "empty.txt", b"")
    url = serve(tmp_path, tells_size=False).url
    assert describe_source(f"{url}/{name}").num_bytes == 0
    assert read_whole(f"{url}/{name}") == DOCUMENTS
    assert read_whole(f"{url}/empty.txt") == []


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst"])
def test_a_server_that_sends_less_than_it_says_is_named(tmp_path: Path, serve: Serve, name: str) -> None:
    write(tmp_path / name, zstandard.compress(TEXT) if name.endswith(".zst") else TEXT)
    parts = cut_into_splits([describe_source(f"{serve(tmp_path, keeps_back=100).url}/{name}")])
    with pytest.raises(DataError, match=rf"http://.*{name}: cannot be read \(.*Not enough data.*; try again"):
        read(parts)


def test_a_page_that_is_not_there_is_named(tmp_path: Path, serve: Serve) -> None:
    url = serve(tmp_path).url
    with pytest.raises(DataError, match=r"/nowhere\.txt: cannot be read \(404, message='Not Found'"):
        describe_source(f"{url}/nowhere.txt")
    gone = describe_source(f"{serve(write(tmp_path / 'a.txt', TEXT).parent).url}/a.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"/a\.txt: cannot be read "):
        read([InputSplit(gone, 0)])


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.txt: cannot be read \(Cannot connect"):
        describe_source("http://127.0.0.1:9/a.txt")
