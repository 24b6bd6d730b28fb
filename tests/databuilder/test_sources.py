"""What a list of names stands for."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cli.sources import find_sources
from config.schemas import BUILTIN_STORIES
from databuilder import sources
from databuilder.sources import describe_source, resolve_sources
from transformerlm.utils.errors import DataError


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.txt",
        "notes.md",
        "zipped.txt.gz",
        "packed.txt.zst",
        "image.png",
        "archive.gz",
        ".hidden.txt",
        "deep/er/c.txt",
        ".git/d.txt",
        "v1.0/e.text",
        "odd[1].txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    return tmp_path


def names(folder: Path, *given: str) -> list[str]:
    return [str(Path(file.name).relative_to(folder)) for file in resolve_sources([folder / name for name in given])]


def test_files_keep_their_order_and_come_once(texts: Path) -> None:
    assert names(texts, "b.txt", "a.txt", "b.txt", "*.md") == ["b.txt", "a.txt", "notes.md"]


def test_any_file_may_be_named(texts: Path) -> None:
    assert names(texts, "image.png", ".hidden.txt", "odd[1].txt") == ["image.png", ".hidden.txt", "odd[1].txt"]


def test_globs_are_sorted_and_may_cross_folders(texts: Path) -> None:
    assert names(texts, "?.txt") == ["a.txt", "b.txt"]
    assert names(texts, "**/c.txt") == ["deep/er/c.txt"]


def test_a_folder_means_the_text_files_in_it(texts: Path) -> None:
    assert names(texts, ".") == [
        "a.txt",
        "b.txt",
        "deep/er/c.txt",
        "notes.md",
        "odd[1].txt",
        "packed.txt.zst",
        "v1.0/e.text",
        "zipped.txt.gz",
    ]


@pytest.mark.parametrize("name", ["none.txt", "*.none", "none/"])
def test_a_name_that_matches_nothing_is_named(name: str, texts: Path) -> None:
    with pytest.raises(DataError, match="there is no such file, folder or match"):
        names(texts, "a.txt", name)


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match="the folder holds no text file"):
        resolve_sources([str(tmp_path)])


def test_the_builtin_corpus_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write_corpus(path: Path, _number: int, _seed: int, _progress: object) -> None:
        written.append(path)
        path.parent.mkdir(parents=True)
        path.write_text("a story", encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "write_corpus", write_corpus)
    first = find_sources([BUILTIN_STORIES])
    assert find_sources([BUILTIN_STORIES, BUILTIN_STORIES], format="jsonl") == first
    assert [(file.name, file.format) for file in first] == [(str(path), "text") for path in written]


def test_the_builtin_corpus_of_another_generator_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.builtin_corpus_path()
    monkeypatch.setattr(sources, "generator_version", lambda: "0")
    assert sources.builtin_corpus_path() != before


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match="empty string"):
        resolve_sources([""])


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", "text"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json.zst", "jsonl"),
        ("A.PARQUET", "parquet"),
        ("A.JSONL.GZ", "jsonl"),
        ("a.Json.Bz2", "jsonl"),
        ("a.jsonl.bak", "text"),
        ("jsonl", "text"),
    ],
)
def test_the_format_follows_from_the_name_unless_it_is_given(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).write_text("x", encoding="utf-8")
    assert describe_source(tmp_path / name).format == format
    assert describe_source(tmp_path / name, format="jsonl").format == "jsonl"
    assert resolve_sources([tmp_path / name], format="text")[0].format == "text"


def test_a_folder_of_several_formats_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("README.md", "data/a.jsonl", "data/b.parquet", "data/info.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"several formats \(jsonl, parquet, text\); set the format to read"):
        resolve_sources([tmp_path])
    assert [file.name for file in resolve_sources([tmp_path], format="jsonl")] == [str(tmp_path / "data/a.jsonl")]
    (tmp_path / "data/b.parquet").unlink()
    with pytest.raises(DataError, match="the folder holds no parquet file"):
        resolve_sources([tmp_path], format="parquet")


def test_a_file_is_described_by_size_and_version(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 10, encoding="utf-8")
    first = describe_source(path)
    assert (first.name, first.num_bytes) == (str(path), 10)
    path.write_text("y" * 10, encoding="utf-8")
    assert describe_source(path).version != first.version


@pytest.mark.parametrize("where", ["", "memory://empty/"])
def test_an_empty_file_is_a_source(tmp_path: Path, where: str) -> None:
    name = f"{where or str(tmp_path) + '/'}empty.txt"
    with fsspec.open(name, "wb"):
        pass
    assert [(file.name, file.num_bytes) for file in resolve_sources([name])] == [(name, 0)]


def test_a_folder_says_what_it_leaves_out(texts: Path) -> None:
    said: list[str] = []
    (texts / "data.jsonl").write_text("{}", encoding="utf-8")
    resolve_sources([texts], format="text", log=said.append)
    assert said == [
        f"{texts}: 8 files are read, 5 left out (2 hidden, 1 .gz, 1 .jsonl, and 1 more); name them to read them"
    ]
    resolve_sources([texts / "a.txt", texts / "*.md"], log=said.append)
    assert len(said) == 1


def test_links_in_circles_are_followed_once(tmp_path: Path) -> None:
    for name in ("data/a.txt", "data/deep/b.txt", "elsewhere/c.txt", "elsewhere/.hidden/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    for link, target in (("data/loop", "."), ("data/deep/up", ".."), ("data/linked", "../elsewhere")):
        (tmp_path / link).symlink_to(target)
    found = ["data/a.txt", "data/deep/b.txt", "data/linked/c.txt"]
    assert names(tmp_path, "data") == found
    assert names(tmp_path, "data/**/*.txt") == found
    assert names(tmp_path, "data/**/[ab].txt") == found[:2]
    assert names(tmp_path, "data/*/*.txt", "data/**/.hidden/*.txt")[-1] == "data/linked/.hidden/d.txt"


def test_one_file_under_two_names_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("x", encoding="utf-8")
    (tmp_path / "c.txt").symlink_to("b.txt")
    (tmp_path / "d.txt").hardlink_to(tmp_path / "b.txt")
    (tmp_path / "e.txt").write_text("x", encoding="utf-8")
    said: list[str] = []
    (tmp_path / "sub").mkdir()
    found = resolve_sources([tmp_path, f"{tmp_path}/sub/../c.txt", tmp_path / "b.txt"], log=said.append)
    assert [Path(file.name).name for file in found] == ["b.txt", "e.txt"]
    assert len(said) == 1
    assert said[0].startswith(f"read once: 3 files under a second name ({tmp_path}/c.txt is {tmp_path}/b.txt, ")


def test_a_pipe_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for name in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match=r"a\.txt: is a folder, pipe or device, not a file; write the output"):
            resolve_sources([name])


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(No such file"):
        resolve_sources([tmp_path])


def test_a_hub_that_cannot_be_reached_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    hub.HfFileSystem.clear_instance_cache()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"^hf://datasets/nobody/nothing/a\.txt: cannot be read \(") as raised:
        resolve_sources(["hf://datasets/nobody/nothing/a.txt"])
    assert "\n" not in str(raised.value)


def test_urls_may_be_files_globs_and_folders(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "deep/c.txt", "d.png", ".e.txt"):
        fsspec.filesystem("memory").pipe(f"/texts/{name}", b"x")
    found = [[file.name for file in resolve_sources([f"memory://texts{rest}"])] for rest in ("/b.txt", "/*.txt", "")]
    assert found == [
        ["memory://texts/b.txt"],
        ["memory:///texts/.e.txt", "memory:///texts/a.txt", "memory:///texts/b.txt"],
        ["memory:///texts/a.txt", "memory:///texts/b.txt", "memory:///texts/deep/c.txt"],
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.txt", "1")
        archive.writestr("two.txt", "2")
    chained = resolve_sources([f"zip://*.txt::file://{tmp_path}/a.zip"])
    assert [file.name for file in chained] == [f"zip://{name}.txt::file://{tmp_path}/a.zip" for name in ("one", "two")]
    with pytest.raises(DataError, match=r"memory://texts/\*\.none: there is no match"):
        resolve_sources(["memory://texts/*.none"])
    with pytest.raises(DataError, match=r"memory://nowhere\.txt: cannot be read"):
        resolve_sources(["memory://nowhere.txt"])


def test_a_server_is_asked_for_sizes_and_versions_and_may_list_its_files(
    tmp_path: Path, serve: Callable[..., Any]
) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text("x" * 10, encoding="utf-8")
    server = serve(tmp_path)
    first = describe_source(f"{server.url}/a.jsonl?download=true")
    assert (first.num_bytes, first.format) == (10, "jsonl")
    assert server.requests == ["HEAD /a.jsonl?download=true"]
    (tmp_path / "a.jsonl").write_text("y" * 10, encoding="utf-8")
    assert describe_source(f"{server.url}/a.jsonl?download=true").version != first.version
    assert [file.name for file in resolve_sources([f"{server.url}/*.jsonl"])] == [
        f"{server.url}/{name}.jsonl" for name in ("a", "b")
    ]
