"""The plain-Python trainer against one that recounts everything after each merge."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import Tokenizer
from transformerlm.tokenizer.bpe import count_pretokens, learn_merges

Merges = list[tuple[bytes, bytes]]


def naive_merges(counts: Mapping[bytes, int], num_merges: int) -> Merges:
    """The definition: count all pairs of byte strings, merge the best everywhere, start again."""
    words = [([bytes([byte]) for byte in piece], count) for piece, count in counts.items()]
    merges: Merges = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [(naive_merge(word, best), count) for word, count in words]
    return merges


def naive_merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged = list(word)
    for at in range(len(word)):  # past the end of `merged`, slices are too short to equal the pair
        if tuple(merged[at : at + 2]) == pair:
            merged[at : at + 2] = [pair[0] + pair[1]]
    return merged


def test_the_example_of_sennrich_et_al() -> None:
    counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
    merges = learn_merges(counts, 6)
    assert merges == [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")]


def test_pretokens_that_do_not_occur_are_not_merged() -> None:
    assert learn_merges({b"ab": 0, b"cd": 1}, 5) == [(b"c", b"d")]


@pytest.mark.parametrize("alphabet", ["ab", "abcde", "aé你", "a\x00\xff"])
def test_merges_are_those_of_the_definition(alphabet: str) -> None:
    words = st.text(alphabet=alphabet, min_size=1, max_size=12).map(str.encode)

    @given(st.dictionaries(words, st.integers(1, 4), max_size=12), st.integers(0, 60))
    def check(counts: dict[bytes, int], num_merges: int) -> None:
        merges = learn_merges(counts, num_merges)
        assert merges == naive_merges(counts, num_merges)
        backwards = dict(reversed(counts.items()))
        assert merges == learn_merges(backwards, num_merges)

    check()


@given(st.text(alphabet="abc", min_size=30, max_size=200))
def test_every_trained_vocabulary_makes_a_tokenizer(text: str) -> None:
    merges = learn_merges({text.encode(): 1}, 100)
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    assert len(set(tokens)) == len(tokens)
    tokenizer = Tokenizer(dict(enumerate(tokens)), merges)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pretokens_are_counted_text_by_text_and_special_tokens_left_out() -> None:
    texts = [b"one tw", b"o one<s><s>one"]
    assert count_pretokens(texts, ["<s>"]) == {b"one": 2, b" tw": 1, b"o": 1, b" one": 1}
    assert count_pretokens([], ["<s>"]) == {}


def test_a_byte_that_is_not_utf8_is_a_character_of_its_own() -> None:
    assert count_pretokens([b"a\xff\xfe b\xe4\xbd c \x80"]) == {
        b"a": 1,
        b"\xff\xfe": 1,
        b" b": 1,
        b"\xe4\xbd": 1,
        b" c": 1,
        b" \x80": 1,
    }
