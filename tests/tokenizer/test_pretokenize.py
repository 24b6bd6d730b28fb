"""Pre-tokens as GPT-2 cuts them, and special tokens cut out before."""

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer.pretokenize import pretokenize, special_pattern, split_special
from transformerlm.tokenizer.validation import check_special_tokens
from transformerlm.utils.errors import TokenizerError

PUBLISHED = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("we'll don'T 's'", ["we", "'ll", " don", "'", "T", " '", "s", "'"]),
        ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
        ("x1234 é٣ 你好。", ["x", "1234", " é", "٣", " 你好", "。"]),
        ("end \r\n", ["end", " \r\n"]),
        ("\u3000\u3000x\x1c", ["\u3000", "\u3000", "x", "\x1c"]),
    ],
)
def test_pieces(text: str, pieces: list[str]) -> None:
    assert pretokenize(text) == pieces


@given(st.text(alphabet="a'slvetrmdL1٣é \n\t\u3000.!你\u0301"))
def test_is_the_published_pattern_and_loses_nothing(text: str) -> None:
    assert pretokenize(text) == regex.findall(PUBLISHED, text)
    assert "".join(pretokenize(text)) == text


def test_special_tokens_are_cut_out_longest_first() -> None:
    pattern = special_pattern(["<e>", "<e><e>", "."])
    assert split_special("a<e><e><e>b.", pattern) == ["a", "<e><e>", "", "<e>", "b", ".", ""]


def test_no_special_tokens_leave_the_text_whole() -> None:
    assert special_pattern([]) is None
    assert split_special("a<e>", None) == ["a<e>"]


@pytest.mark.parametrize(
    ("special_tokens", "message"),
    [
        (["<e>", "<f>", "<e>"], "'<e>' is given twice"),
        ([""], "is empty"),
        (["<\ud800>"], "not valid Unicode"),
    ],
)
def test_unfit_special_tokens_are_refused(special_tokens: list[str], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        check_special_tokens(special_tokens)


def test_one_character_of_two_bytes_is_a_fit_special_token() -> None:
    check_special_tokens(["é", "<e>"])
