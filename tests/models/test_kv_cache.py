"""The law of the cache: however a sequence is cut up and batched, the logits are those of one forward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError

CONTEXT = 12
LLAMA3 = {
    "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
    "rope_original_context": 32,
}  # fmt: skip
OPTIONS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True},
    "normed": {"qk_norm": True},
    "biased": {"qkv_bias": True},
    "scaled": {"head_size": 12, **LLAMA3},
    "all": {"num_kv_heads": 1, "tie_embeddings": True, "qk_norm": True, "qkv_bias": True, "head_size": 10, **LLAMA3},
}


def build(name: str) -> TransformerLM:
    model = TransformerLM(50, CONTEXT, 24, 2, 4, 32, **OPTIONS[name])
    draw = torch.Generator().manual_seed(0)
    model.init_weights(draw)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=draw)
    return model


MODELS = {name: build(name) for name in OPTIONS}


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12)
@given(cuts=st.sets(st.integers(1, CONTEXT - 1)), explicit=st.booleans())
@torch.no_grad()
def test_any_split_equals_the_full_forward(name: str, cuts: set[int], explicit: bool) -> None:
    model, ids = MODELS[name], random_ids(2, CONTEXT)
    cache = model.new_cache(2)
    pieces = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), CONTEXT], strict=True):
        positions = torch.arange(start, end) if explicit else None
        pieces.append(model(ids[:, start:end], positions, cache))
    assert cache.length == CONTEXT
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, CONTEXT - 4), min_size=1, max_size=4))
@torch.no_grad()
def test_ragged_rows_equal_single_rows(name: str, lengths: list[int]) -> None:
    """Rows of different lengths, padded on the right, each continue as if they were alone."""
    model, ids, longest = MODELS[name], random_ids(len(lengths), CONTEXT), max(lengths)
    cache = model.new_cache(len(lengths))
    model(ids[:, :longest].where(torch.arange(longest) < torch.tensor(lengths)[:, None], 0), cache=cache)
    for step in range(4):
        positions = torch.tensor(lengths)[:, None] + step
        logits = model(ids.gather(1, positions), positions, cache)[:, 0]
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, : length + step + 1])[0, -1]
            torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rows_may_extend_by_several_tokens_at_their_own_positions() -> None:
    model, ids = MODELS["grouped"], random_ids(2, CONTEXT)
    lengths = torch.tensor([[5], [2]])
    cache = model.new_cache(2)
    model(ids[:, :5], cache=cache)
    positions = lengths + torch.arange(3)
    logits = model(ids.gather(1, positions), positions, cache)
    torch.testing.assert_close(logits[0], model(ids[:1, :8])[0, 5:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], model(ids[1:, :5])[0, 2:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_setting_the_length_back_forgets() -> None:
    model, ids = MODELS["plain"], random_ids(1, CONTEXT)
    cache = model.new_cache(1)
    model((ids + 1) % 50, cache=cache)
    cache.length = 0
    model(ids[:, :4], cache=cache)
    torch.testing.assert_close(model(ids[:, 4:5], cache=cache), model(ids[:, :5])[:, -1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = MODELS["plain"]
    cache = model.new_cache(1, 5)
    model(random_ids(1, 4), cache=cache)
    with pytest.raises(ConfigError, match="5 slots, of which 4 are in use: 2 more tokens do not fit"):
        model(random_ids(1, 2), cache=cache)
    assert cache.length == 4
    with pytest.raises(ConfigError, match="the cache has 1 rows, the batch 3"):
        model(random_ids(3, 1), cache=cache)
    with pytest.raises(ConfigError, match=r"must have shape \(batch, tokens\)"):
        model(random_ids(1), cache=cache)
    with pytest.raises(ConfigError, match="max_len 13 exceeds the model's context length 12"):
        model.new_cache(1, 13)


def test_a_cache_is_not_for_training() -> None:
    model = MODELS["plain"]
    with pytest.raises(ConfigError, match="inference only"):
        model(random_ids(1, 4), cache=model.new_cache(1))


def test_the_cache_has_the_shape_and_type_of_the_model() -> None:
    model = TransformerLM(50, CONTEXT, 24, 3, 4, 32, num_kv_heads=2, dtype=torch.bfloat16)
    cache = model.new_cache(2, 7)
    assert len(cache.keys) == len(cache.values) == 3
    assert {(tuple(x.shape), x.dtype) for x in cache.keys + cache.values} == {((2, 2, 7 + 1, 6), torch.bfloat16)}
