"""What a list of names stands for."""

from pathlib import Path

import pytest

from cli.sources import find_sources
from config.schemas import BUILTIN_STORIES
from databuilder import resolve_sources, sources
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
    return [str(path.relative_to(folder)) for path in resolve_sources([str(folder / name) for name in given])]


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
    assert find_sources([BUILTIN_STORIES, BUILTIN_STORIES]) == first == written


def test_the_builtin_corpus_of_another_generator_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.builtin_corpus_path()
    monkeypatch.setattr(sources, "generator_version", lambda: "0")
    assert sources.builtin_corpus_path() != before


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match="empty string"):
        resolve_sources([""])
