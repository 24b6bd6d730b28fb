r"""Pre-tokenization: text is cut into pre-tokens, and byte pairs merge only inside a pre-token.

In GPT-2's pattern, a pre-token is a contraction (`'s`, `'ll`), or a run of letters, of numbers or of other signs, each
with one space before it, or a run of white space:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

Its successors take any one sign before letters, cut numbers into at most three digits, keep line breaks with the
text before them, and recognise contractions in capitals:

    gpt2          GPT-2
    gpt2_digits   SmolLM: the same, with every digit by itself
    cl100k        tiktoken's cl100k_base, of GPT-3.5 and GPT-4
    llama3        Llama 3: cl100k, but white space that ends a text is cut after its last line break, as elsewhere
    qwen2         Qwen2 and Qwen3: llama3 with every digit by itself
    o200k         tiktoken's o200k_base, of GPT-4o: words are also cut between a small letter and a capital, marks count
                  as letters, contractions stay with their word
    tekken        Mistral's: o200k without contractions, and every digit by itself

Special tokens are cut out first and are never split.

`unicode.ranges` defines which characters are letters (`\p{L}`), numbers, white space or marks, and names its version
of Unicode, the same as in today's `tokenizers` and tiktoken. So both backends agree, and package updates do not matter.

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2, and the code
published with it; OpenAI's tiktoken (`tiktoken_ext/openai_public.py`); the `tokenizer.json` of the other models.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from transformerlm.tokenizer.unicode.ranges import (
    CASELESS,
    LOWER_CASE,
    MARKS,
    NUMBERS,
    UPPER_CASE,
    WHITE_SPACE,
)

GPT2, GPT2_DIGITS, CL100K, LLAMA3, QWEN2 = "gpt2", "gpt2_digits", "cl100k", "llama3", "qwen2"
O200K, TEKKEN = "o200k", "tekken"
PATTERNS = (GPT2, GPT2_DIGITS, CL100K, LLAMA3, QWEN2, O200K, TEKKEN)


def pretokenize(text: str, pattern: str = GPT2) -> list[str]:
    """Return the pre-tokens of `text`, which join to `text` again. Special tokens are ordinary text here."""
    return _compiled(pattern, text.isascii()).findall(text)


class _Brackets(NamedTuple):
    """Classes of characters, written as inside the brackets of a regular expression."""

    letters: str
    numbers: str
    white: str
    front: str
    """Characters allowed at the front of a word in `o200k` and `tekken`: marks, and all letters except lower case."""
    back: str
    """Characters allowed at its back: marks, and all letters except capitals."""


_ASCII = _Brackets("A-Za-z", "0-9", r"\t-\r ", "A-Z", "a-z")


@cache
def _compiled(pattern: str, is_ascii: bool) -> re.Pattern[str]:
    """Return the compiled pattern; the one for ASCII is four times as fast, the other takes 40 ms to compile."""
    return re.compile(_expression(pattern, _ASCII if is_ascii else _unicode_brackets()))


@cache
def _unicode_brackets() -> _Brackets:
    numbers, white, upper, lower, caseless, marks = map(
        in_brackets, (NUMBERS, WHITE_SPACE, UPPER_CASE, LOWER_CASE, CASELESS, MARKS)
    )
    return _Brackets(upper + lower + caseless, numbers, white, upper + caseless + marks, lower + caseless + marks)


def _expression(pattern: str, brackets: _Brackets) -> str:
    """Return the regular expression of a pattern, its alternatives in the order in which they are published."""
    L, N, S, F, B = brackets
    gpt2_words = [r"'(?:[sdmt]|ll|ve|re)", rf" ?[{L}]+"]
    signs = rf" ?[^{S}{L}{N}]+"
    white = [rf"[{S}]+(?![^{S}])", rf"[{S}]+"]
    any_case = "'(?:[sSſtTdDmM]|[lL][lL]|[vV][eE]|[rR][eE])"  # U+017F (ſ) case-folds to "s"
    before_word = rf"[^\r\n{L}{N}]?"
    words = [any_case, rf"{before_word}[{L}]+"]
    line_breaks = rf"[{S}]*[\r\n]+"
    front_and_back, front_alone = rf"{before_word}[{F}]*[{B}]+", rf"{before_word}[{F}]+[{B}]*"
    signs_and_slashes = rf"{signs}[\r\n/]*"
    alternatives = {
        GPT2: [*gpt2_words, rf" ?[{N}]+", signs, *white],
        # Digits are cut out before anything else, so white space before one counts as the end of its text.
        GPT2_DIGITS: [*gpt2_words, rf"[{N}]", signs, rf"[{S}]+(?![^{S}{N}])", rf"[{S}]+"],
        CL100K: [*words, rf"[{N}]{{1,3}}", rf"{signs}[\r\n]*", rf"[{S}]++\Z", line_breaks, *white],
        LLAMA3: [*words, rf"[{N}]{{1,3}}", rf"{signs}[\r\n]*", line_breaks, *white],
        QWEN2: [*words, rf"[{N}]", rf"{signs}[\r\n]*", line_breaks, *white],
        O200K: [
            rf"{front_and_back}(?:{any_case})?",
            rf"{front_alone}(?:{any_case})?",
            rf"[{N}]{{1,3}}",
            signs_and_slashes,
            line_breaks,
            *white,
        ],
        TEKKEN: [front_and_back, front_alone, rf"[{N}]", signs_and_slashes, line_breaks, *white],
    }
    return "|".join(alternatives[pattern])


def in_brackets(ranges: str) -> str:
    """Return ranges like "41-5a aa" as they are written in brackets."""
    return "".join("-".join(rf"\U{int(end, 16):08x}" for end in ends.split("-")) for ends in ranges.split())


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return the pattern of the special tokens, the longest first where one begins another; None for none."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


def split_special(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    """Cut `text` at its special tokens: plain text at the even places, special tokens at the odd ones."""
    return pattern.split(text) if pattern else [text]
