"""GPT-2's files: read, written, and refused with the place and the reason."""

import json
from pathlib import Path

import pytest

from transformerlm.tokenizer import gpt2_bytes_to_unicode
from transformerlm.tokenizer.io import (
    read_merges,
    read_tokenizer_files,
    read_vocab,
    write_merges,
    write_vocab,
)
from transformerlm.utils.errors import TokenizerError

MERGES = [(b"#", b"#"), (b" ", b"t"), (b"\xe4", b"\xbd"), (b"##", b"\n")]
BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [*BYTES, *(left + right for left, right in MERGES), "<ende é>".encode()]
VOCAB = dict(enumerate(TOKENS))


def save(folder: Path, vocab: str | None = None, merges: str | None = None) -> tuple[Path, Path]:
    """Write the good files, or the given text in their place."""
    paths = folder / "vocab.json", folder / "merges.txt"
    write_vocab(paths[0], VOCAB, MERGES)
    write_merges(paths[1], MERGES)
    for path, text in zip(paths, (vocab, merges), strict=True):
        if text is not None:
            path.write_text(text, encoding="utf-8", newline="")
    return paths


def entries() -> dict[str, int]:
    """The good vocabulary file's content, to be spoilt."""
    to_text = gpt2_bytes_to_unicode()
    return {"".join(to_text[byte] for byte in token): n for n, token in enumerate(TOKENS[:-1])} | {"<ende é>": 260}


def test_stand_ins_are_256_different_printing_characters() -> None:
    stand_ins = gpt2_bytes_to_unicode()
    assert list(stand_ins) == list(range(256))
    assert len(set(stand_ins.values())) == 256
    assert all(character.isprintable() and not character.isspace() for character in stand_ins.values())
    assert [stand_ins[byte] for byte in b" \n!\x00\xff\xad"] == ["Ġ", "Ċ", "!", "Ā", "ÿ", "Ń"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    vocab_path, merges_path = save(tmp_path)
    assert read_tokenizer_files(vocab_path, merges_path) == (VOCAB, MERGES)
    assert json.loads(vocab_path.read_bytes()) == entries()
    assert merges_path.read_text(encoding="utf-8") == "#version: 0.2\n# #\nĠ t\nä ½\n## Ċ\n"


def test_gpt2s_files_are_written_as_they_were_read(data: Path, tmp_path: Path) -> None:
    vocab, merges = read_tokenizer_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt")
    assert (len(vocab), len(merges)) == (50257, 50000)
    write_vocab(tmp_path / "vocab.json", vocab, merges)
    write_merges(tmp_path / "merges.txt", merges)
    assert (tmp_path / "vocab.json").read_bytes() == (data / "gpt2_vocab.json").read_bytes()
    header, rest = (tmp_path / "merges.txt").read_bytes().split(b"\n", maxsplit=1)
    assert header == b"#version: 0.2"
    assert rest == (data / "gpt2_merges.txt").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "# #\nĠ t\n",
        "#version: 0.2\n# #\nĠ t\n",
        "#version: 0.2 - trained elsewhere\r\n# #\r\nĠ t\r\n",
        "# #\nĠ t",
    ],
)
def test_the_version_line_is_optional_and_hashes_are_tokens(tmp_path: Path, text: str) -> None:
    assert read_merges(save(tmp_path, merges=text)[1]) == MERGES[:2]


@pytest.mark.parametrize("text", ["", "#version: 0.2\n", "#version: 0.2"])
def test_there_may_be_no_merges(tmp_path: Path, text: str) -> None:
    assert read_merges(save(tmp_path, merges=text)[1]) == []


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("# #\n\nĠ t\n", r"line 2\): '' is not two tokens"),
        ("#version: 0.2\n# #\nĠt\n", r"line 3\): 'Ġt' is not two tokens"),
        ("# # #\n", r"line 1\): .* is not two tokens"),
        ("# #\n #\n", r"line 2\): ' #' is not two tokens"),
        ("# #\nĠ 你\n", r"line 2\): '你' stands for no byte"),
        ("## #\nĠ t\n", r"line 1\): .* needs b'###', which the vocabulary lacks"),
        ("# #\nĠ t\nx y\n", r"line 3\): .* needs b'xy', which the vocabulary lacks"),
    ],
)
def test_bad_merges_are_named_with_their_line(tmp_path: Path, merges: str, message: str) -> None:
    vocab_path, merges_path = save(tmp_path, merges=merges)
    with pytest.raises(TokenizerError, match=rf"merges\.txt \({message}"):
        read_tokenizer_files(vocab_path, merges_path)


def spoilt(**changes: object) -> str:
    return json.dumps({**entries(), **changes})


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (spoilt(a=98), "'b' has the id 98 of another token"),
        (spoilt(a=-1), "'a' has the id -1; give a whole number"),
        (spoilt(a="97"), "'a' has the id '97'; give a whole number"),
        (spoilt(a=97.0), r"'a' has the id 97\.0; give a whole number"),
        (spoilt(a=True), "'a' has the id True; give a whole number"),
        (spoilt(a={"x": 1}), "'a' has the id .*; give a whole number"),
        (spoilt(more=1 << 21), "b'more' has the id 2097152; give one from 0"),
        (spoilt(Ġthen=261), "no merge makes 'Ġthen'"),
        (json.dumps(entries())[:-1] + ', "a": 261}', "'a' is listed twice"),
        (json.dumps(entries())[:-1] + ', "\\ud800x": 261}', r".*\\ud800x.* is not valid Unicode"),
        (json.dumps(entries())[:-1], r"not JSON: .* \(line 1\)"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "has no tokens"),
    ],
)
def test_bad_vocabularies_are_named_with_the_entry(tmp_path: Path, vocab: str, message: str) -> None:
    vocab_path, merges_path = save(tmp_path, vocab=vocab)
    with pytest.raises(TokenizerError, match=rf"vocab\.json: {message}"):
        read_tokenizer_files(vocab_path, merges_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_files_that_are_not_text_or_not_there(tmp_path: Path, name: str) -> None:
    paths = save(tmp_path)
    (tmp_path / name).write_bytes(b"# #\n\xff")
    with pytest.raises(TokenizerError, match=rf"{name}: not UTF-8 at byte 4"):
        read_tokenizer_files(*paths)
    (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=rf"{name}: cannot be read .* transformerlm-train-tokenizer"):
        read_tokenizer_files(*paths)


@pytest.mark.parametrize("special", ["Ġt", "ä½", "Ġ|end|"])
def test_a_special_token_that_reads_like_an_ordinary_one_is_not_written(tmp_path: Path, special: str) -> None:
    with pytest.raises(TokenizerError, match="reads like an ordinary token"):
        write_vocab(tmp_path / "vocab.json", VOCAB | {261: special.encode()}, MERGES)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_are_told_apart_by_the_merges(tmp_path: Path) -> None:
    vocab_path, _ = save(tmp_path)
    assert read_vocab(vocab_path, MERGES)[260] == "<ende é>".encode()
