"""Special tokens are found as a regular expression finds them, the longest first."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.special_tokens import find_special_token, special_tokens_of
from transformerlm.tokenizer.pretokenize import special_pattern

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

TOKENS = ["<e>", "<e><e>", "<", "é!", "e><", "<|end|>"]


def found_in(text: bytes, begin: int, end: int, tokens: list[str]) -> list[tuple[int, int]]:
    specials = special_tokens_of({token.encode(): number for number, token in enumerate(tokens)})
    found = []
    while True:
        start, begin, number = find_special_token(np.frombuffer(text, np.uint8), begin, end, specials)
        if start == end:
            assert number == -1
            return found
        assert text[start:begin] == tokens[number].encode()
        found.append((start, begin))


@given(
    st.lists(st.sampled_from(["<e>", "<", "e", ">", "é", "!", "<|end|>", "<|en", " ", "a" * 61]), max_size=60),
    st.sets(st.sampled_from(TOKENS)),
    st.integers(0, 40),
    st.integers(0, 40),
)
@example(["a" * 61, "<|end|>"], {"<|end|>"}, 0, 1)
@example(["a" * 61, "<|end|>", "a" * 61], {"<|end|>"}, 61, 61)
def test_what_is_found_is_leftmost_and_there_longest(
    parts: list[str], tokens: set[str], skipped: int, left: int
) -> None:
    text = "".join(parts).encode()
    begin = min(skipped, len(text))
    end = max(begin, len(text) - left)
    pattern = special_pattern(tokens)
    within = text[begin:end].decode("latin-1")
    expected = []
    if pattern is not None:
        in_bytes = special_pattern([token.encode().decode("latin-1") for token in tokens])
        assert in_bytes is not None
        expected = [(begin + match.start(), begin + match.end()) for match in in_bytes.finditer(within)]
    assert found_in(text, begin, end, sorted(tokens)) == expected
