"""The walker finds the pre-tokens that the expressions find: in any bytes, and however a text falls into chunks."""

import random
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.chunks import CHUNK, next_pieces
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import PADDING
from transformerlm.tokenizer.kernels.pretokenize_regex import BEYOND, rules_of, walk
from transformerlm.tokenizer.pretokenize import PATTERNS, pretokenize

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

WALKED = PATTERNS[1:]
ALPHABETS = {
    "words": "aAbBsStTlLvVeErRdDmM''ſ \n",
    "cases": ["A", "b", "É", "é", "ǅ", "ʰ", "你", "\u0301", "\u0903", "'", "s", "1", " ", "/"],
    "white space": [*" \t\n\r\v", "\u0085", "\u00a0", "\u1680", "\u2003", "\u3000", "a", "1", "."],
    "numbers": "0123456789½²٣४Ⅷ𝟗 a",
    "signs": "!?./'_\r\n\r\n/ aA1«。🙂\u200d",
    "capitals": "AAAAAAAAAAAAAAAAAAAAb你",
}
BYTES = [*(bytes([byte]) for byte in b" 'aA1\n!"), b"\xc5", b"\xbf", b"\xe4\xbd", b"\xf0\x9f", b"\xff", b"\xed\xa0\x80"]
texts = st.one_of(
    *(
        st.text(alphabet, max_size=60).map(str.encode)
        if isinstance(alphabet, str)
        else st.lists(st.sampled_from(alphabet), max_size=60).map(lambda parts: "".join(parts).encode())
        for alphabet in ALPHABETS.values()
    ),
    st.lists(st.sampled_from(BYTES), max_size=60).map(b"".join),
)


def starts_by_walker(text: bytes, pattern: str, *, is_end: bool = True) -> list[int]:
    """Return the starts that are certain, and where the next one is."""
    buffer = np.frombuffer(bytearray(text + b" " * PADDING), np.uint8)
    starts = np.empty(len(text) + 1, np.int64)
    found = walk(buffer, len(text), is_end, rules_of(pattern), np.empty(len(text) + BEYOND, np.uint8), starts)
    return starts[: found + 1].tolist()


def starts_by_pattern(text: bytes, pattern: str) -> list[int]:
    pieces = pretokenize(text.decode("utf-8", "surrogateescape"), pattern)
    return list(accumulate((len(piece.encode("utf-8", "surrogateescape")) for piece in pieces), initial=0))


@pytest.mark.parametrize("pattern", WALKED)
@settings(max_examples=60)
@given(text=texts, place=st.integers(0, 10**6))
def test_starts_are_those_of_the_pattern_and_certain_ones_stay(pattern: str, text: bytes, place: int) -> None:
    expected = starts_by_pattern(text, pattern)
    assert starts_by_walker(text, pattern) == expected
    beginning = starts_by_walker(text[: place % (len(text) + 1)], pattern, is_end=False)
    assert beginning == expected[: len(beginning)]


@pytest.mark.parametrize("pattern", WALKED)
def test_starts_are_those_of_the_pattern_through_chunks(pattern: str) -> None:
    choose = random.Random(0)
    for alphabet in ALPHABETS.values():
        for length in (CHUNK - 3, CHUNK, 3 * CHUNK):
            text = "".join(choose.choices(alphabet, k=length)).encode()
            assert starts_by_chunks(text, pattern) == starts_by_pattern(text, pattern)


def starts_by_chunks(text: bytes, pattern: str) -> list[int]:
    data, rules = np.frombuffer(text, np.uint8), rules_of(pattern)
    buffer, starts = np.empty(CHUNK + PADDING, np.uint8), np.empty(CHUNK + 1, np.int64)
    at, found = 0, [0]
    while at < len(text):
        buffer, starts, pieces = next_pieces(data, at, len(text), rules, buffer, starts)
        found += (starts[1 : pieces + 1] + at).tolist()
        at += int(starts[pieces])
    return found


@pytest.mark.parametrize("pattern", WALKED)
@pytest.mark.parametrize("unit", ["a", "A", "\n", " ", "7", "'", "!", "你", "\u0301", "\u3000", "A你", "\n "])
def test_a_long_run_of_one_thing_takes_linear_work(pattern: str, unit: str) -> None:
    text = (unit * 100_000).encode()
    assert starts_by_chunks(text, pattern)[-1] == len(text)


@pytest.mark.parametrize("pattern", WALKED)
def test_starts_are_those_of_the_pattern_in_files(pattern: str, data: Path) -> None:
    text = (data / "udhr_multilingual.txt").read_bytes()
    assert starts_by_chunks(text, pattern) == starts_by_pattern(text, pattern)
