"""Rows drawn together: by the distribution of the plain functions, by their own seeds, and never what is left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.batch_sampling import (
    BatchSampler,
    increasing,
    invert,
    penalized,
    sampling_distribution,
    uniform_numbers,
)
from transformerlm.inference.sampling import softmax, top_k_filter, top_p_filter

CPU = torch.device("cpu")
DRAWS = 20_000
WAYS = [
    SamplingHparams(temperature=1.0, top_p=1.0),
    SamplingHparams(temperature=0.5, top_p=0.8),
    SamplingHparams(temperature=2.0, top_p=1.0, top_k=3),
    SamplingHparams(temperature=1.5, top_p=0.7, top_k=8),
    SamplingHparams(temperature=2.0, top_p=0.1),
    SamplingHparams(temperature=1.0, top_p=1.0, min_p=0.2),
    SamplingHparams(temperature=3.0, top_p=0.6, top_k=9, min_p=0.3),
    SamplingHparams(temperature=0.0),
    SamplingHparams(temperature=1.0, top_p=0.0),
    SamplingHparams(temperature=1.0, top_k=1),
]


def expected_probabilities(logits: Tensor, way: SamplingHparams) -> Tensor:
    if way.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    probs = softmax(logits / way.temperature, -1)
    if way.top_k is not None:
        probs = top_k_filter(probs, way.top_k)
    probs = top_p_filter(probs, way.top_p)
    probs = probs.masked_fill(probs < way.min_p * probs.max(), 0)
    return probs / probs.sum()


def test_tokens_come_as_often_as_they_should() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    counts = torch.zeros(len(WAYS), 12)
    sampler = BatchSampler([way.model_copy(update={"seed": seed}) for seed, way in enumerate(WAYS)], CPU)
    for number in range(DRAWS):
        drawn = sampler.draw(logits.expand(len(WAYS), -1), torch.full((len(WAYS),), number))
        counts[torch.arange(len(WAYS)), drawn] += 1
    for way, row in zip(WAYS, counts, strict=True):
        expected = expected_probabilities(logits, way)
        assert row[expected == 0].sum() == 0
        deviation = (expected * (1 - expected) / DRAWS).sqrt()
        assert ((row / DRAWS - expected).abs() <= 4.5 * deviation).all(), way


@pytest.mark.parametrize(("top_p", "kept"), [(0.1, [3]), (0.3, [3, 0]), (0.6, [3, 0, 1]), (1e-46, [3])])
def test_of_tokens_as_likely_the_lower_id_goes_first(top_p: float, kept: list[int]) -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.5, -9.0, 1.0]])
    expected = top_p_filter(softmax(logits, -1), top_p)[0].nonzero().flatten().tolist()
    assert expected == sorted(kept)
    sampler = BatchSampler([SamplingHparams(temperature=1, top_p=top_p)], CPU)
    assert {sampler.draw(logits, torch.tensor([number])).item() for number in range(200)} == set(kept)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_alone_draws_what_it_draws_beside_others(way: SamplingHparams) -> None:
    logits = torch.randn(len(WAYS), 500, generator=torch.Generator().manual_seed(1)) * 3
    rows = [one.model_copy(update={"seed": 7 * seed}) for seed, one in enumerate(WAYS)]
    place = WAYS.index(way)
    for number in range(50):
        numbers = torch.arange(len(WAYS)) * number
        together = BatchSampler(rows, CPU).draw(logits, numbers)
        alone = BatchSampler([rows[place]], CPU).draw(logits[place : place + 1], numbers[place : place + 1])
        assert together[place] == alone[0]


@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 1.0, 3.0]), min_size=1, max_size=9),
    number=st.sampled_from([0.0, 1e-8, 0.5, 1 - 2.0**-24]),
)
def test_what_has_no_weight_is_never_drawn(weights: list[float], number: float) -> None:
    if not any(weights):
        weights[0] = 1.0
    place = invert(torch.tensor([weights]), torch.tensor([[number]])).item()
    assert weights[int(place)] > 0


def test_numbers_are_even_and_follow_seed_and_place() -> None:
    seeds, places = torch.arange(300).repeat_interleave(300), torch.arange(300).repeat(300)
    numbers = uniform_numbers(seeds, places)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert torch.equal(numbers, uniform_numbers(seeds, places))
    bins = torch.histc(numbers, 100, 0, 1)
    assert ((bins - 900).abs() < 5 * 30).all()
    table = numbers.view(300, 300) - 0.5
    for shifted in (table[1:] * table[:-1], table[:, 1:] * table[:, :-1]):  # neighbours know nothing of one another
        assert shifted.mean().abs() < 5 / 12 / 300


def test_the_largest_seed_will_do() -> None:
    numbers = uniform_numbers(torch.tensor([2**63 - 1, 2**63 - 2]), torch.tensor([2**40, 2**40]))
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers[0] != numbers[1]


def test_a_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalized(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, -4.0, 2.0, -2.0]]


@pytest.mark.parametrize("way", [*WAYS, SamplingHparams(temperature=1e-3), SamplingHparams(temperature=1, top_p=1e-46)])
def test_the_sampling_distribution_is_that_of_the_plain_functions(way: SamplingHparams) -> None:
    for seed in range(20):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
        found = sampling_distribution(logits, way)
        torch.testing.assert_close(found, expected_probabilities(logits, way), rtol=1e-4, atol=1e-6)
        assert found.sum().item() == pytest.approx(1, abs=1e-5)


def test_tokens_come_as_often_as_the_sampling_distribution_says() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 2
    seen = torch.arange(12) % 3 == 0
    ways = [*WAYS, SamplingHparams(temperature=1.5, top_p=0.8, top_k=6, min_p=0.02, repetition_penalty=1.7)]
    sampler = BatchSampler([way.model_copy(update={"seed": seed}) for seed, way in enumerate(ways)], CPU)
    counts = torch.zeros(len(ways), 12)
    seen_rows = torch.stack([seen if way.repetition_penalty != 1 else torch.zeros_like(seen) for way in ways])
    for number in range(DRAWS):
        drawn = sampler.draw(logits.expand(len(ways), -1), torch.full((len(ways),), number), seen_rows)
        counts[torch.arange(len(ways)), drawn] += 1
    for way, row in zip(ways, counts, strict=True):
        expected = sampling_distribution(logits, way, seen if way.repetition_penalty != 1 else None)
        assert row[expected == 0].sum() == 0
        deviation = (expected * (1 - expected) / DRAWS).sqrt()
        assert ((row / DRAWS - expected).abs() <= 4.5 * deviation + 1e-6).all(), way


def test_running_sums_grow_at_positive_weights_alone() -> None:
    # as sums added in parallel are rounded: one grows at a weight of 0, and one is smaller than the sum before it
    weights = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    sums = torch.tensor([[1e-7, 1.0, 1.0000001, 0.9999999, 2.5, 3.0]])
    corrected = increasing(sums, weights)
    assert corrected.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0, 3.0]]
    for target in (0.0, 5e-8, 0.5, 1.0, 2.4, 2.99):
        place = torch.searchsorted(corrected, torch.tensor([[target]]), right=True).item()
        assert weights[0, int(place)] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_samples_no_token_of_weight_zero() -> None:
    generator = torch.Generator(device="cuda").manual_seed(0)
    weights = torch.rand(64, 128_000, generator=generator, device="cuda")
    weights = weights.masked_fill(torch.rand(weights.shape, generator=generator, device="cuda") < 0.9, 0)
    for _ in range(200):
        numbers = torch.rand(64, 1, generator=generator, device="cuda")
        assert (weights.gather(1, invert(weights, numbers)) > 0).all()
