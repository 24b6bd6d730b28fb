"""What a tokenizer does beside vocabulary and merges: kept on disk where it is not GPT-2's, and refused if damaged."""

import json
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest

from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.tokenizer.settings import SETTINGS_FILE
from transformerlm.tokenizer.unicode.change import changed_character
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}
VOCAB = {
    0: b"<s>",
    1: "<ende é>".encode(),
    2: b"ab",
    3: b"\xff\xfe",
    **{4 + byte: bytes([byte]) for byte in range(256)},
}
SPECIAL = ["<s>", "<ende é>"]
OPTIONS = {
    "pattern": "llama3",
    "normalization": "NFC",
    "whole_words": True,
    "end_of_text": "<ende é>",
    "beginning_of_text": "<s>",
}


@pytest.fixture
def unlike_gpt2() -> Tokenizer:
    """Special tokens first, an entry that no merge makes and that is not UTF-8, and every setting changed."""
    return Tokenizer(VOCAB, [(b"a", b"b")], SPECIAL, **OPTIONS)


def test_a_saved_tokenizer_is_loaded_with_all_that_it_does(unlike_gpt2: Tokenizer, tmp_path: Path) -> None:
    unlike_gpt2.save(tmp_path)
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(unlike_gpt2))):
        assert (copy.vocab, copy.merges, copy.special_tokens) == (VOCAB, [(b"a", b"b")], {"<s>": 0, "<ende é>": 1})
        assert asdict(copy.settings) == OPTIONS | {"unknown_token": None}
        assert copy.sha256() == unlike_gpt2.sha256()
        assert (copy.eos_token_id, copy.bos_token_id) == (1, 0)
        assert copy.encode(b"<s>\xff\xfe") == [0, 3]


def test_a_tokenizer_like_gpt2s_has_two_files_and_its_old_hash(tmp_path: Path) -> None:
    tokenizer = Tokenizer(BYTES | {256: b"ab", 257: END_OF_TEXT.encode()}, [(b"a", b"b")], [END_OF_TEXT])
    (tmp_path / SETTINGS_FILE).write_text("of another tokenizer")
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    assert tokenizer.sha256() == "b3a860975fe53bdfddddf95dc13b9620fc9bc4f87dc1ed9368e7ce03b025e419"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (257, None)


def test_an_entry_that_is_not_special_does_not_become_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer(BYTES | {256: b"<a>", 257: b"<b>"}, [], ["<b>"])
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).special_tokens == {"<b>": 257}
    assert Tokenizer.load(tmp_path).sha256() == tokenizer.sha256()


def test_each_setting_changes_the_hash() -> None:
    vocab = BYTES | {256: b"<s>", 257: b"<e>"}
    changes = [{}, *({name: value} for name, value in {**OPTIONS, "end_of_text": "<e>"}.items())]
    assert len({Tokenizer(vocab, [], ["<s>", "<e>"], **change).sha256() for change in changes}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, not 1; use a newer"),
        ({"pattern": "gpt5"}, "pattern is 'gpt5'; the patterns are"),
        ({"pattern": ["gpt2"]}, r"pattern is \['gpt2'\]"),
        ({"normalization": "NFD"}, "normalization is 'NFD'"),
        ({"whole_words": 1}, "whole_words is True or False"),
        ({"end_of_text": None}, "end_of_text the text of a special token"),
        ({"beginning_of_text": "<b>"}, "beginning_of_text is '<b>', which is no special token"),
        ({"beginning_of_text": {}}, "beginning_of_text is {}"),
        ({"special_tokens": "<s>"}, "special_tokens is no list of texts"),
        ({"special_tokens": ["<s>", "<s>"]}, "'<s>' is given twice"),
        ({"special_tokens": ["<s>", "<ende é>", "<t>"]}, r"vocab\.json: the special token '<t>' is missing"),
        ({"special_tokens": ["<s>"]}, r"vocab\.json: '<ende é>' is no special token, and ' ' stands for no byte"),
        ({"more": 1}, "'more' is not known"),
        ({"unicode": "18.0"}, "unicode is '18.0', not '16.0', so text would be cut differently"),
        ({"unicode": 16}, "unicode is 16, not '16.0'"),
    ],
)
def test_a_damaged_file_is_refused(unlike_gpt2: Tokenizer, tmp_path: Path, change: dict, message: str) -> None:
    unlike_gpt2.save(tmp_path)
    content = json.loads((tmp_path / SETTINGS_FILE).read_text())
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(content | change))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": NaN}', "[" * 10**5, '{"a": 1, "a": 2}', '{"a": "\\ud800"}', "9" * 5000]
)
def test_what_is_no_object_is_refused(unlike_gpt2: Tokenizer, tmp_path: Path, text: str) -> None:
    unlike_gpt2.save(tmp_path)
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(TokenizerError, match=SETTINGS_FILE):
        Tokenizer.load(tmp_path)


def test_a_file_that_is_too_large_is_not_read(unlike_gpt2: Tokenizer, tmp_path: Path) -> None:
    unlike_gpt2.save(tmp_path)
    with (tmp_path / SETTINGS_FILE).open("ab") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(TokenizerError, match="has more than 16,777,216 bytes"):
        Tokenizer.load(tmp_path)


def test_a_role_needs_a_special_token() -> None:
    with pytest.raises(TokenizerError, match="beginning_of_text is '<s>', which is no special token"):
        Tokenizer(BYTES, [], beginning_of_text="<s>")


NEWER = "\U00012652"  # a letter from Unicode 17.0 on
NEWER_MERGES = [(NEWER.encode()[:size], NEWER.encode()[size : size + 1]) for size in (1, 2, 3)]
NEWER_VOCAB = BYTES | {256 + at: left + right for at, (left, right) in enumerate(NEWER_MERGES)}


def test_an_old_tokenizer_with_a_character_of_another_class_is_loaded_with_a_warning(tmp_path: Path) -> None:
    Tokenizer(NEWER_VOCAB, NEWER_MERGES).save(tmp_path)
    (tmp_path / SETTINGS_FILE).unlink()  # as it was saved before
    with pytest.warns(UserWarning, match=r"a token has the character U\+12652, whose class differs") as caught:
        Tokenizer.load(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_an_old_settings_file_does_not_record_the_unicode_version(unlike_gpt2: Tokenizer, tmp_path: Path) -> None:
    newer = Tokenizer(NEWER_VOCAB, NEWER_MERGES, pattern="llama3")
    for tokenizer, num_warnings in ((unlike_gpt2, 0), (newer, 1)):
        tokenizer.save(tmp_path)
        content = json.loads((tmp_path / SETTINGS_FILE).read_text())
        assert content.pop("unicode") == "16.0"
        (tmp_path / SETTINGS_FILE).write_text(json.dumps(content))
        with warnings.catch_warnings(record=True) as caught:
            assert Tokenizer.load(tmp_path).sha256() == tokenizer.sha256()
        assert len(caught) == num_warnings


@pytest.mark.filterwarnings("error")
def test_a_tokenizer_saved_today_is_loaded_without_a_warning(tmp_path: Path) -> None:
    tokenizer = Tokenizer(NEWER_VOCAB, NEWER_MERGES)
    tokenizer.save(tmp_path)
    assert (tmp_path / SETTINGS_FILE).exists()
    assert Tokenizer.load(tmp_path).sha256() == tokenizer.sha256()


def test_only_patterns_of_cased_words_tell_marks_and_cases_apart() -> None:
    for character in ("ʕ", "\u1acf"):
        assert changed_character([b"a", character.encode()], "gpt2") is None
        for pattern in ("o200k", "tekken"):
            assert changed_character([b"a", character.encode()], pattern) == character
    assert changed_character([*(bytes([byte]) for byte in range(256)), "é\u3042".encode()], "o200k") is None
