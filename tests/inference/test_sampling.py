"""Softmax, the filters and the draw: PyTorch and slow loops as oracles."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.inference.sampling import sample_token, softmax, top_k_filter, top_p_filter
from transformerlm.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softmax_equals_torch(dim: int, shift: float) -> None:
    x = 5 * torch.randn(3, 4, 6, generator=generator()) + shift
    torch.testing.assert_close(softmax(x, dim), torch.softmax(x, dim))


def test_softmax_of_low_precision_is_computed_in_float32() -> None:
    x = torch.randn(2, 1000, generator=generator()).half()
    assert torch.equal(softmax(x, -1), torch.softmax(x.float(), -1).half())


def nucleus(probs: list[float], p: float) -> set[int]:
    """The smallest set of most likely tokens that has probability p, one token at a time."""
    kept: set[int] = set()
    total = 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)):
        if kept and total >= p:
            break
        kept.add(token)
        total += probs[token]
    return kept


# Multiples of 1/64 add up exactly, so that the oracle and float32 agree on every border.


@settings(max_examples=200)
@given(rows=st.lists(st.integers(0, 63), min_size=7, max_size=7), numerator=st.integers(0, 64))
def test_top_p_keeps_the_smallest_sufficient_set(rows: list[int], numerator: int) -> None:
    borders = [0, *sorted(rows), 64]
    probs = [(b - a) / 64 for a, b in itertools.pairwise(borders)]
    p = numerator / 64
    filtered = top_p_filter(torch.tensor(probs), p).tolist()
    kept = nucleus(probs, p) if p < 1 else set(range(len(probs)))
    total = sum(probs[token] for token in kept)
    assert filtered == pytest.approx([x / total if t in kept else 0 for t, x in enumerate(probs)])


def test_top_p_of_the_lecture_example() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]])
    expected = torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 0.375, 0.625]])
    torch.testing.assert_close(top_p_filter(probs, 0.8), expected)
    torch.testing.assert_close(top_p_filter(probs[None, None], 0.8)[0, 0], expected)


def test_top_p_zero_is_argmax_and_one_is_everything() -> None:
    probs = torch.tensor([[0.2, 0.4, 0.4], [0.1, 0.2, 0.7]])
    assert torch.equal(top_p_filter(probs, 0), torch.tensor([[0.0, 1, 0], [0, 0, 1]]))
    assert torch.equal(top_p_filter(probs, 1), probs)


def test_top_k_keeps_k_and_what_ties_with_the_last() -> None:
    probs = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.25, 0.25, 0.5, 0.0]])
    filtered = top_k_filter(probs, 2)
    torch.testing.assert_close(filtered, torch.tensor([[4 / 7, 0, 3 / 7, 0], [0.25, 0.25, 0.5, 0]]))
    assert torch.equal(top_k_filter(probs, 9), probs)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_top_p_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="top-p must lie between"):
        top_p_filter(torch.tensor([1.0]), p)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 2.0}, "top-p"),
    ],
)
def test_sampling_settings_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_token(torch.zeros(1, 3), **setting)


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"temperature": 1e-30}, {"top_p": 0}, {"top_k": 1}])
def test_greedy_settings_take_the_most_likely_token(setting: dict) -> None:
    logits = torch.randn(2, 3, 50, generator=generator())
    state = torch.get_rng_state()
    assert torch.equal(sample_token(logits, **setting), logits.argmax(-1))
    assert torch.equal(torch.get_rng_state(), state)


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -torch.inf])
    draws = sample_token(logits.expand(40_000, 5), temperature=2.0, generator=generator())
    frequencies = torch.bincount(draws, minlength=5) / 40_000
    torch.testing.assert_close(frequencies, torch.softmax(logits / 2, -1), atol=0.01, rtol=0)
    assert frequencies[4] == 0


def test_filters_combine_after_the_temperature() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    draws = sample_token(logits.expand(2000, 4), top_k=3, top_p=0.7, generator=generator())
    assert set(draws.tolist()) == {0, 1}  # of the three, 4/9 + 3/9 exceed 0.7
    cold = sample_token(logits.expand(2000, 4), temperature=0.1, top_p=0.9, generator=generator())
    assert set(cold.tolist()) == {0}


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_the_draw_has_the_leading_shape_and_follows_the_generator(shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, 10, generator=generator())
    first, again = (sample_token(logits, generator=generator(5)) for _ in range(2))
    assert first.shape == shape
    assert torch.equal(first, again)


def test_low_precision_logits_can_be_sampled() -> None:
    logits = torch.randn(4, 100, generator=generator()).bfloat16()
    assert sample_token(logits, top_p=0.9, top_k=20, generator=generator()).shape == (4,)
