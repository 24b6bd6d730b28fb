"""The compiled learning of merges against the plain one."""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformerlm.tokenizer.bpe import learn_merges
from transformerlm.tokenizer.kernels import trainer
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.trainer import learn_merges_compiled
from transformerlm.tokenizer.pretokenize import pretokenize
from transformerlm.utils.errors import TokenizerError

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

Merges = list[tuple[bytes, bytes]]
Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]

ALPHABETS = [b"a", b"ab", b"abc", b"\x00\xff", b"\x00a\x01", "aé你".encode()]


def arrays_of(counts: Mapping[bytes, int]) -> Arrays:
    words = np.frombuffer(b"".join(counts), np.uint8)
    ends = np.cumsum([len(word) for word in counts], dtype=np.int64)
    return words, ends, np.array(list(counts.values()), np.int64)


def learn(counts: Mapping[bytes, int], num_merges: int) -> Merges:
    return learn_merges_compiled(*arrays_of(counts), num_merges)


def expected(counts: Mapping[bytes, int], num_merges: int) -> Merges:
    """Return what the reference learns; words that do not occur are kept from it."""
    return learn_merges({word: count for word, count in counts.items() if count > 0}, num_merges)


def words_over(alphabet: bytes, max_size: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), max_size=max_size).map(bytes)


corpora = st.sampled_from(ALPHABETS).flatmap(
    lambda alphabet: st.dictionaries(words_over(alphabet, 40), st.integers(0, 4), max_size=12)
)


@given(corpora, st.integers(0, 100))
@example({b"aaaa": 1}, 10)
@example({b"abababa": 1, b"bab": 2}, 10)
@example({b"": 3, b"a": 7, b"ab": 0}, 10)
def test_merges_are_those_of_the_reference(counts: dict[bytes, int], num_merges: int) -> None:
    assert learn(counts, num_merges) == expected(counts, num_merges)


@given(corpora, st.randoms())
def test_the_order_of_the_words_does_not_matter(counts: dict[bytes, int], rng: random.Random) -> None:
    shuffled = rng.sample(list(counts.items()), len(counts))
    assert learn(dict(shuffled), 100) == learn(counts, 100)


@pytest.mark.parametrize("seed", range(12))
def test_larger_corpora_give_the_merges_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = rng.randbytes(rng.choice([2, 3, 4, 20, 200]))
    longest = rng.choice([3, 10, 300])
    words = (bytes(rng.choices(alphabet, k=rng.randint(1, longest))) for _ in range(200))
    counts = {word: rng.choice([1, 1, 2, 3, 300, 70_000]) for word in words}
    assert learn(counts, 3000) == expected(counts, 3000)


def test_real_text_gives_the_merges_of_the_reference(data: Path) -> None:
    text = (data / "udhr_multilingual.txt").read_text(encoding="utf-8")
    counts = Counter(piece.encode() for piece in pretokenize(text))
    assert learn(counts, 3000) == expected(counts, 3000)


def test_tokens_that_begin_alike_are_compared_to_their_ends() -> None:
    """Their first eight bytes are equal, or one is the beginning of another, or a zero byte stands behind it."""
    stems = [b"beginnin" + end for end in (b"a", b"b", b"ab", b"", b"\x00", b"\x00\x00")] + [
        b"b",
        b"b\x00",
        b"b\x00\x00",
    ]
    counts = {stem: 1000 + number for number, stem in enumerate(stems)}
    counts |= {stem + end: 3 for stem in stems for end in (b"x", b"y", b"\x00", b"xbeginninab")}
    merges = learn(counts, 1000)
    assert merges == expected(counts, 1000)
    assert (b"beginninab", b"x") in merges


@pytest.mark.parametrize("factor", [2**32, 2**40 + 1, 2**53 + 1])
def test_counts_have_64_bits(factor: int) -> None:
    counts = {b"ab": factor, b"bc": factor + 1, b"abc": 2, b"cd": factor - 1, b"da": factor + 2}
    assert learn(counts, 10) == expected(counts, 10)


@pytest.mark.parametrize("exponent", [1, 10, 20])
def test_a_long_word_of_one_letter_doubles(exponent: int) -> None:
    merges = learn({b"a" * 2**exponent: 1}, 1000)
    assert merges == [(b"a" * 2**power, b"a" * 2**power) for power in range(exponent)]


def test_a_long_word_of_random_letters() -> None:
    word = bytes(random.Random(1).choices(b"abcdefgh", k=50_000))
    assert learn({word: 3}, 300) == expected({word: 3}, 300)


def test_no_more_memory_than_the_corpus_needs() -> None:
    assert learn({b"abcd": 1}, 10**15) == [(b"c", b"d"), (b"b", b"cd"), (b"a", b"bcd")]


@pytest.mark.parametrize("num_merges", [0, -1])
def test_no_merges_are_learned_if_none_are_asked_for(num_merges: int) -> None:
    assert learn({b"ab": 1}, num_merges) == []


@pytest.mark.parametrize("counts", [{}, {b"": 5}, {b"a": 5, b"b": 1}, {b"ab": 0}])
def test_without_pairs_there_are_no_merges(counts: dict[bytes, int]) -> None:
    assert learn(counts, 10) == []


def test_progress_rises_to_one() -> None:
    """Random bytes: as many pairs as can be, so that arrays are enlarged often."""
    counts = {random.Random(seed).randbytes(50): 1 for seed in range(100)}
    shares: list[float] = []
    merges = learn_merges_compiled(*arrays_of(counts), 4000, shares.append)
    assert merges == expected(counts, 4000)
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert 0 <= shares[0] < shares[-1] == 1


def test_arrays_of_the_caller_are_not_changed() -> None:
    words, ends, counts = arrays_of({b"abab": 2, b"ba": 3})
    words = words.copy()  # so that it can be written to
    learn_merges_compiled(words, ends, counts, 5)
    assert (words.tobytes(), ends.tolist(), counts.tolist()) == (b"ababba", [4, 6], [2, 3])


@pytest.mark.parametrize(
    ("ends", "counts"),
    [([2, 4], [1]), ([2, 4], [1, -1]), ([3, 2, 4], [1, 1, 1]), ([2, 3], [1, 1]), ([2, 5], [1, 1]), ([-1, 4], [1, 1])],
)
def test_ends_and_counts_must_fit_the_words(ends: list[int], counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"of the words|each word"):
        learn_merges_compiled(np.frombuffer(b"abcd", np.uint8), np.array(ends), np.array(counts), 5)


def test_too_large_a_corpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenizerError, match="too many"):
        learn({b"ab": 2**61}, 5)
    assert learn({b"ab": 2**60}, 5) == [(b"a", b"b")]
    monkeypatch.setattr(trainer, "MAX_PLACES", 8)  # those of six bytes, two words and the end are 9
    with pytest.raises(TokenizerError, match="2 GiB"):
        learn({b"abc": 1, b"def": 1}, 5)
    assert learn({b"abc": 1, b"de": 1}, 1) == [(b"d", b"e")]
