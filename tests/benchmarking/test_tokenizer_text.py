import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarking.tokenizer_rows import PATHOLOGICAL
from benchmarking.tokenizer_text import build_text, cut_text, pathological_text, short_texts
from transformerlm.hparams import END_OF_TEXT
from transformerlm.tokenizer.pretokenize import pretokenize

ENGLISH = (
    "The old man looked at the harbour.\n\nA ship, said he, comes but once in 12 years.\n\n\nI'll wait!" + END_OF_TEXT
)
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。\n\n人人有资格享有本宣言所载的一切权利和自由。"


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert build_text([ENGLISH, CHINESE], 20_000, seed=1) == build_text([ENGLISH, CHINESE], 20_000, seed=1)
    assert build_text([ENGLISH, CHINESE], 20_000, seed=1) != build_text([ENGLISH, CHINESE], 20_000, seed=2)


@pytest.mark.parametrize("num_bytes", [1, 1000, 300_000])
def test_the_length_is_met_but_for_a_document(num_bytes: int) -> None:
    length = len(build_text([ENGLISH, CHINESE], num_bytes, seed=0).encode("utf-8"))
    assert num_bytes <= length < num_bytes + 10_000


def test_sources_have_equal_shares_and_alternate() -> None:
    text = build_text([ENGLISH, CHINESE], 400_000, seed=0)
    for half in (text[: len(text) // 2], text[len(text) // 2 :]):
        chinese = len("".join(re.findall(r"[^\x00-\x7f]+", half)).encode("utf-8"))
        assert 0.3 < chinese / len(half.encode("utf-8")) < 0.7


def test_no_end_of_text_and_no_source_without_words() -> None:
    text = build_text([ENGLISH, "...", ""], 50_000, seed=0)
    assert END_OF_TEXT not in text
    assert "..." not in text
    assert build_text(["..."], 1000, seed=0) == ""


def test_new_words_never_cease_and_become_rarer() -> None:
    """Heaps' law: twice the text has 2^0.6 = 1.5 times the distinct words; repeated text would have as many as half."""
    text = build_text([ENGLISH], 2_000_000, seed=0)
    counts = [len(set(pretokenize(text[: len(text) >> halvings]))) for halvings in (2, 1, 0)]
    assert counts[0] > 1000
    for fewer, more in pairwise(counts):
        assert 1.3 < more / fewer < 1.95


def test_most_words_stay() -> None:
    words = re.findall(r"\w+", build_text([ENGLISH], 200_000, seed=0))
    known = set(re.findall(r"\w+", ENGLISH))
    assert 0.8 < sum(word in known for word in words) / len(words) < 0.98


@given(text=st.text("ab \n\t'1.é一\u2028", max_size=60), num_chars=st.integers(1, 20))
def test_pieces_are_pretokenized_as_in_the_whole(text: str, num_chars: int) -> None:
    pieces = cut_text(text, num_chars)
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in pretokenize(piece)] == pretokenize(text)
    assert all(len(piece) >= num_chars for piece in pieces[:-1])


def test_a_built_text_can_be_cut() -> None:
    pieces = cut_text(build_text([ENGLISH], 100_000, seed=0), 1000)
    assert len(pieces) > 15
    assert max(map(len, pieces)) < 6000


@pytest.mark.parametrize("kind", PATHOLOGICAL)
def test_a_pathological_text_is_one_pretoken_of_its_length(kind: str) -> None:
    text = pathological_text(kind, 3000, seed=0)
    assert len(text.encode("utf-8")) == 3000
    assert pretokenize(text) == [text]
    assert text == pathological_text(kind, 3000, seed=0)


def test_short_texts_are_many_different_windows() -> None:
    text = build_text([ENGLISH, CHINESE], 50_000, seed=0)
    shorts = short_texts(text, 12, 500, seed=0)
    assert len(shorts) == 500
    assert all(len(short) == 12 and short in text for short in shorts)
    assert len(set(shorts)) > 200  # the source is small
    assert short_texts(text[:12], 12, 2, seed=0) == [text[:12]] * 2
