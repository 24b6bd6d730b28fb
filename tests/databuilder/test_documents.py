"""Cutting text into documents: the law of `str.split`, and what stays on which side."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from databuilder.documents import is_validation, read_documents, split_documents, split_single_document

SEPARATOR = "<|endoftext|>"


@given(
    parts=st.lists(st.text("ab<|>", max_size=8)),
    separator=st.sampled_from(["<", "ab", "<|a|>", "<|<|", "aab", "aaa"]),
)
def test_splitting_a_stream_is_str_split_of_the_whole(parts: list[str], separator: str) -> None:
    assert list(split_documents(parts, separator)) == "".join(parts).split(separator)


@given(
    documents=st.lists(st.text(st.characters(exclude_characters="<"), max_size=20), min_size=1),
    chunk=st.integers(1, 20),
)
def test_any_chunking_gives_the_documents_back(documents: list[str], chunk: int) -> None:
    text = SEPARATOR.join(documents)
    parts = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    assert list(split_documents(parts, SEPARATOR)) == documents


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_line_breaks_at_the_edges_go_and_those_inside_stay(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", f"\r\none\r\ntwo\n{SEPARATOR}\n\n  three \n")
    assert list(read_documents([path], SEPARATOR)) == ["one\r\ntwo", "  three "]


def test_empty_documents_are_left_out_and_a_files_end_ends_a_document(tmp_path: Path) -> None:
    first = write(tmp_path, "a.txt", f"{SEPARATOR}\n{SEPARATOR}one{SEPARATOR}two")
    empty = write(tmp_path, "b.txt", "")
    last = write(tmp_path, "c.txt", f"three{SEPARATOR}\r\n")
    assert list(read_documents([first, empty, last], SEPARATOR)) == ["one", "two", "three"]


def test_reading_reports_the_bytes_of_all_files(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a.txt", "é" * 200_000), write(tmp_path, "b.txt", "b" * 10)]
    reported: list[int] = []
    list(read_documents(paths, SEPARATOR, reported.append))
    assert reported == sorted(reported)
    assert len(reported) > 2
    assert reported[-1] == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_about_the_wished_share_goes_to_validation(fraction: float) -> None:
    chosen = sum(is_validation(f"document {number}", fraction) for number in range(4000))
    assert chosen / 4000 == pytest.approx(fraction, abs=0.03)


def test_a_larger_fraction_only_adds_documents() -> None:
    texts = [f"document {number}" for number in range(500)]
    small = {text for text in texts if is_validation(text, 0.1)}
    assert small <= {text for text in texts if is_validation(text, 0.2)}


@given(st.lists(st.text("abc", max_size=6)), st.floats(0.01, 0.99))
def test_a_single_document_is_cut_in_two_without_losing_a_character(lines: list[str], fraction: float) -> None:
    document = "\n".join(lines).strip("\r\n")
    train, valid = split_single_document(document, fraction)
    assert (train + valid).replace("\n", "") == document.replace("\n", "")


def test_a_single_documents_end_is_for_validation() -> None:
    document = "\n".join(f"line {number}" for number in range(100))
    train, valid = split_single_document(document, 0.1)
    assert f"{train}\n{valid}" == document
    assert len(valid) == pytest.approx(0.1 * len(document), abs=10)
