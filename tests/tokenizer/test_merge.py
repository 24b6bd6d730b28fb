"""Merging a pre-token: by the definition, and the fast way for long ones, which must not differ."""

from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import learn_merges
from transformerlm.tokenizer.kernels.merger import token_numbers
from transformerlm.tokenizer.merge import LONG, MergeTable, merge_ids, merge_long, merge_short, merge_table

words = st.text(alphabet="abc", min_size=1, max_size=80).map(str.encode)


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


@given(st.lists(st.tuples(words, words), max_size=40), st.text(alphabet="abcd", max_size=300))
def test_long_and_short_merging_agree(merges: list[tuple[bytes, bytes]], text: str) -> None:
    merges = [(left[:3], right[:2]) for left, right in merges]
    known = {part for pair in merges for part in pair} | {left + right for left, right in merges}
    table = merge_table(merges, token_numbers(known))
    assert merge_long(list(text.encode()), table) == merge_short(list(text.encode()), table)


@given(st.dictionaries(words, st.integers(1, 5), max_size=6), st.text(alphabet="abcd", max_size=300))
def test_long_and_short_merging_agree_on_learned_merges(counts: dict[bytes, int], text: str) -> None:
    merged(text.encode(), learn_merges(counts, 60))


def test_a_very_long_word_is_merged() -> None:
    merges = [(b"a" * 2**power, b"a" * 2**power) for power in range(4)]
    tokens = merge_ids(list(b"a" * (16 * LONG**2 + 7)), table_of(merges))
    assert tokens == [259] * LONG**2 + [257, 256, ord("a")]
