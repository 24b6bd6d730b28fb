"""Merging a pre-token: by the definition, and the fast way for long ones, which must not differ."""

from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import learn_merges
from transformerlm.tokenizer.merge import LONG, merge_bytes, merge_long, merge_short, merge_table

words = st.text(alphabet="abc", min_size=1, max_size=80).map(str.encode)


def test_the_earliest_merge_goes_first_and_the_leftmost_of_its_pairs() -> None:
    table = merge_table([(b"b", b"c"), (b"a", b"b"), (b"bc", b"bc"), (b"a", b"a")])
    assert merge_bytes(b"abc", table) == [ord("a"), 256]
    assert merge_bytes(b"bcbcbc", table) == [258, 256]
    assert merge_bytes(b"aaab", table) == [259, 257]
    assert merge_bytes(b"aaa", table) == [259, ord("a")]
    assert merge_bytes(b"", table) == []


@given(st.dictionaries(words, st.integers(1, 5), max_size=6), st.text(alphabet="abcd", max_size=300))
def test_long_and_short_merging_agree(counts: dict[bytes, int], text: str) -> None:
    table = merge_table(learn_merges(counts, 60))
    assert merge_long(list(text.encode()), table) == merge_short(list(text.encode()), table)


def test_a_very_long_word_is_merged() -> None:
    merges = [(b"a" * 2**power, b"a" * 2**power) for power in range(4)]
    tokens = merge_bytes(b"a" * (16 * LONG**2 + 7), merge_table(merges))
    assert tokens == [259] * LONG**2 + [257, 256, ord("a")]
