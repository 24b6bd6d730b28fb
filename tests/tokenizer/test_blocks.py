"""A corpus in blocks: every text is in one, whole or cut at safe places, and none is joined to the next."""

import io
from pathlib import Path

import pytest

from transformerlm.tokenizer import blocks
from transformerlm.tokenizer import bpe as bpe_reference
from transformerlm.tokenizer.blocks import Block, Source, corpus_blocks
from transformerlm.utils.errors import DataError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10)


def texts_of(source: Source) -> list[list[bytes]]:
    return [list(block.texts()) for block in corpus_blocks(source, ["<e>"])]


def test_short_texts_share_a_block() -> None:
    assert texts_of(iter(["abc", b"defg", "", "hij", "klm"])) == [[b"abc", b"defg", b"", b"hij"], [b"klm"]]
    assert texts_of(iter([])) == []


def test_a_long_text_is_cut_where_it_is_safe() -> None:
    text = b"some words " * 10 + b"averyverylongwordindeed<e><e> end"
    parts = [part for block in texts_of(iter([text])) for part in block]
    assert b"".join(parts) == text
    assert len(parts) > 5
    assert bpe_reference.count_pretokens(parts, ["<e>"]) == bpe_reference.count_pretokens([text], ["<e>"])


def test_files_are_read_in_their_order_and_the_share_is_told(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b", "a", "empty")]
    for path, text in zip(paths, ("one two three", "four", ""), strict=True):
        path.write_text(text)
    shares: list[float] = []
    found = list(corpus_blocks(tuple(paths), [], shares.append))
    assert found == [Block(b"one two", [7]), Block(b" threefour", [6, 10])]
    assert shares == [13 / 17, 1.0]


def test_a_missing_file_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file"):
        corpus_blocks([tmp_path / "a", tmp_path / "nowhere"], [])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no text file is given"),
        ([b"a text"], r"item.* is of type bytes; to train on the texts of a list, give iter\(texts\)"),
        (iter([Path("a.txt")]), r"a text is of type PosixPath; give str or bytes \(and paths as a list or tuple\)"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_text_is_refused(source: Source, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts_of(source)


def test_lines_of_an_open_file_are_texts() -> None:
    assert texts_of(io.StringIO("one\ntwo\n")) == [[b"one\n", b"two\n"]]
