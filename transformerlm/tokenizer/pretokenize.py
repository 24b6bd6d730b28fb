r"""GPT-2's pre-tokenization: text is cut into pre-tokens, and byte pairs merge only inside a pre-token.

A pre-token is a contraction (`'s`, `'ll`), or a run of letters, of numbers or of other signs, each with
one space before it, or a run of white space. Special tokens are cut out first and are never split. The pattern is

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

What is a letter (`\p{L}`), a number or white space stands in `kernels.unicode_ranges`, which names the version of
Unicode: so both layers agree, and no update of a package changes what a tokenizer does.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2; the pattern
is that of the code published with it.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from transformerlm.tokenizer.kernels.unicode_ranges import LETTERS, NUMBERS, WHITE_SPACE
from transformerlm.utils.errors import TokenizerError

GPT2, GPT2_DIGITS, CL100K, LLAMA3, QWEN2, O200K = "gpt2", "gpt2_digits", "cl100k", "llama3", "qwen2", "o200k"
PATTERNS = (GPT2, GPT2_DIGITS, CL100K, LLAMA3, QWEN2, O200K)


def pretokenize(text: str) -> list[str]:
    """Return the pre-tokens of `text`, which join to `text` again. Special tokens are ordinary text here."""
    return _ASCII_PATTERN.findall(text) if text.isascii() else _unicode_pattern().findall(text)


def _pattern(letters: str, numbers: str, white: str) -> re.Pattern[str]:
    """Return the pattern for what stands in brackets in a regular expression."""
    return re.compile(
        rf"'(?:[sdmt]|ll|ve|re)| ?[{letters}]+| ?[{numbers}]+| ?[^{white}{letters}{numbers}]+"
        rf"|[{white}]+(?![^{white}])|[{white}]+"
    )


_ASCII_PATTERN = _pattern("A-Za-z", "0-9", r"\t-\r ")  # four times as fast as the next


@cache
def _unicode_pattern() -> re.Pattern[str]:
    return _pattern(*map(_in_brackets, (LETTERS, NUMBERS, WHITE_SPACE)))  # takes 40 ms, and so waits until it is needed


def _in_brackets(ranges: str) -> str:
    """Return ranges like "41-5a aa" as they are written in brackets."""
    return "".join("-".join(rf"\U{int(end, 16):08x}" for end in ends.split("-")) for ends in ranges.split())


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return the pattern of the special tokens, the longest first where one begins another; None for none."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


def split_special(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    """Cut `text` at its special tokens: plain text at the even places, special tokens at the odd ones."""
    return pattern.split(text) if pattern else [text]


def check_special_tokens(special_tokens: Sequence[str]) -> None:
    """Raise `TokenizerError` unless the special tokens are distinct texts of at least two bytes each.

    Every vocabulary holds all single bytes, so that a special token of one byte would have two ids.
    """
    if isinstance(special_tokens, str):
        raise TokenizerError(f"special_tokens is the text {special_tokens!r}; give a list of texts")
    seen: set[str] = set()
    for token in special_tokens:
        if token in seen:
            raise TokenizerError(f"special token {token!r} is given twice; give it once")
        seen.add(token)
        try:
            num_bytes = len(token.encode("utf-8"))
        except UnicodeEncodeError:
            raise TokenizerError(f"special token {token!r} is not valid Unicode; choose another text") from None
        if num_bytes < 2:
            raise TokenizerError(f"special token {token!r} is shorter than two bytes; choose a longer text")
