"""GPT-2's pre-tokenization: text is cut into pre-tokens, and byte pairs merge only inside a pre-token.

A pre-token is a contraction (`'s`, `'ll`), or a run of letters, of numbers or of other signs, each with
one space before it, or a run of white space. Special tokens are cut out first and are never split.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2; the pattern
is that of the code published with it.
"""

import re
from collections.abc import Iterable, Sequence

import regex

from transformerlm.utils.errors import TokenizerError

# The contractions are grouped for speed; the alternatives and their order are GPT-2's.
PRETOKEN_PATTERN: regex.Pattern[str] = regex.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def pretokenize(text: str) -> list[str]:
    """Return the pre-tokens of `text`, which join to `text` again. Special tokens are ordinary text here."""
    return PRETOKEN_PATTERN.findall(text)


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
    for place, token in enumerate(special_tokens):
        if token in special_tokens[:place]:
            raise TokenizerError(f"special token {token!r} is given twice; give it once")
        try:
            num_bytes = len(token.encode("utf-8"))
        except UnicodeEncodeError:
            raise TokenizerError(f"special token {token!r} is not valid Unicode; choose another text") from None
        if num_bytes < 2:
            raise TokenizerError(f"special token {token!r} is shorter than two bytes; choose a longer text")
