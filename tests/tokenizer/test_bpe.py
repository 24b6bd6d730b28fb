"""Byte-pair encoding in plain Python: both trainers, both ways to merge, the encoder and its cache."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import Tokenizer, plain
from transformerlm.tokenizer.backend import Specials
from transformerlm.tokenizer.bpe import (
    LONG,
    MergeTable,
    count_pretokens,
    decode,
    learn_merges,
    learn_merges_naively,
    merge_ids,
    merge_long,
    merge_short,
    merge_table,
)
from transformerlm.tokenizer.kernels.merger import token_numbers
from transformerlm.tokenizer.plain import PlainEncoder
from transformerlm.tokenizer.validation import TokenIds
from transformerlm.utils.errors import TokenizerError

SINGLE = {bytes([byte]): byte for byte in range(256)}


def test_the_example_of_sennrich_et_al() -> None:
    """The worked example in the docstring of `bpe`."""
    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    merges = learn_merges(counts, 6)
    assert merges == [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")]
    assert learn_merges_naively(counts, 6) == merges
    tokens = [*SINGLE, *(left + right for left, right in merges[:4])]
    encoder = PlainEncoder(TokenIds({token: index for index, token in enumerate(tokens)}), merges[:4])
    assert encoder.encode("lowest", Specials({})) == [259, 257]
    assert decode([259, 257], dict(enumerate(tokens))) == b"lowest"


def test_pretokens_that_do_not_occur_are_not_merged() -> None:
    for learn in (learn_merges, learn_merges_naively):
        assert learn({b"ab": 0, b"cd": 1}, 5) == [(b"c", b"d")]


@pytest.mark.parametrize("alphabet", ["ab", "abcde", "aé你", "a\x00\xff"])
def test_merges_are_those_of_the_definition(alphabet: str) -> None:
    words = st.text(alphabet=alphabet, min_size=1, max_size=12).map(str.encode)

    @given(st.dictionaries(words, st.integers(1, 4), max_size=12), st.integers(0, 60))
    def check(counts: dict[bytes, int], num_merges: int) -> None:
        merges = learn_merges(counts, num_merges)
        assert merges == learn_merges_naively(counts, num_merges)
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


letters = st.text(alphabet="abc", min_size=1, max_size=80).map(str.encode)


def table_of(merges: list[tuple[bytes, bytes]]) -> MergeTable:
    """Ids: the single bytes, then the merged tokens as they first come."""
    parts = [part for pair in merges for part in pair]
    return merge_table(merges, token_numbers([*(left + right for left, right in merges), *parts]))


def merged(text: bytes, merges: list[tuple[bytes, bytes]]) -> list[int]:
    """Merge by the definition and the fast way, which must not differ."""
    by_definition = merge_short(list(text), table_of(merges))
    assert merge_long(list(text), table_of(merges)) == by_definition
    return by_definition


def test_the_lowest_rank_goes_first_and_the_leftmost_of_its_pairs() -> None:
    merges = [(b"b", b"c"), (b"a", b"b"), (b"bc", b"bc"), (b"a", b"a")]
    assert merged(b"abc", merges) == [ord("a"), 256]
    assert merged(b"bcbcbc", merges) == [258, 256]
    assert merged(b"aaab", merges) == [259, 257]
    assert merged(b"aaa", merges) == [259, ord("a")]
    assert merged(b"", merges) == []


def test_a_merge_may_use_what_a_later_merge_makes() -> None:
    assert merged(b"abcab", [(b"ab", b"c"), (b"a", b"b")]) == [256, 257]
    assert merged(b"abcd", [(b"abc", b"d"), (b"bc", b"d"), (b"a", b"bc"), (b"b", b"c")]) == [ord("a"), 257]


def test_several_merges_may_make_a_token() -> None:
    merges = [(b"a", b"bc"), (b"ab", b"c"), (b"a", b"b")]
    assert merged(b"abc", merges) == [256]
    assert merged(b"abc", [*merges, (b"b", b"c")]) == [256]
    assert merged(b"xbc", [*merges, (b"b", b"c")]) == [ord("x"), 258]


def test_a_merge_that_is_listed_twice_has_its_last_rank() -> None:
    assert merged(b"abc", [(b"a", b"b"), (b"b", b"c"), (b"a", b"b")]) == [ord("a"), 257]


def test_merging_may_stop_before_the_last_merge() -> None:
    table = table_of([(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"aaaa")])
    assert merge_ids(list(b"a" * 8), table, at_least=2) == [257, 257]
    assert merge_long(list(b"a" * 8), table, at_least=2) == [257, 257]


@given(st.lists(st.tuples(letters, letters), max_size=40), st.text(alphabet="abcd", max_size=300))
def test_long_and_short_merging_agree(merges: list[tuple[bytes, bytes]], text: str) -> None:
    merges = [(left[:3], right[:2]) for left, right in merges]
    known = {part for pair in merges for part in pair} | {left + right for left, right in merges}
    table = merge_table(merges, token_numbers(known))
    assert merge_long(list(text.encode()), table) == merge_short(list(text.encode()), table)


@given(st.dictionaries(letters, st.integers(1, 5), max_size=6), st.text(alphabet="abcd", max_size=300))
def test_long_and_short_merging_agree_on_learned_merges(counts: dict[bytes, int], text: str) -> None:
    merged(text.encode(), learn_merges(counts, 60))


def test_a_very_long_word_is_merged() -> None:
    merges = [(b"a" * 2**power, b"a" * 2**power) for power in range(4)]
    tokens = merge_ids(list(b"a" * (16 * LONG**2 + 7)), table_of(merges))
    assert tokens == [259] * LONG**2 + [257, 256, ord("a")]


def test_the_cache_of_pretokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_CACHED", 10)
    encoder = PlainEncoder(TokenIds(SINGLE), [])
    text = " ".join(map(str, range(100))) + " " + "x" * 200
    assert encoder.encode(text, Specials({})) == list(text.encode())
    assert len(encoder._ids_of) <= 10
    assert " " + "x" * 200 not in encoder._ids_of


def test_an_unknown_id_is_not_decoded() -> None:
    assert decode([97, 98], {97: b"a", 98: b"b"}) == b"ab"
    with pytest.raises(TokenizerError, match="96 is the id of no token"):
        decode([97, 96], {97: b"a", 98: b"b"})
