"""The engine against the plain loop, whatever comes beside a request and whenever it comes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.hparams import SamplingHparams
from transformerlm.inference import Engine, Request, generate
from transformerlm.inference import engine as engine_module
from transformerlm.inference.engine import stretches
from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError

VOCAB, CONTEXT = 40, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True},
    "normed": {"qk_norm": True},
    "biased": {"qkv_bias": True, "head_size": 6, "rope_scaling": "linear", "rope_factor": 2.0},
}
GREEDY = SamplingHparams(temperature=0.0, max_new_tokens=6)
SAMPLED = SamplingHparams(temperature=1.3, top_p=0.9, max_new_tokens=6, seed=5)


def build(name: str) -> TransformerLM:
    # float64: batches of other sizes round differently, which in float32 may decide a draw
    model = TransformerLM(VOCAB, CONTEXT, 32, 2, 4, 64, dtype=torch.float64, **OPTIONS[name])
    model.init_weights(torch.Generator().manual_seed(0))
    return model


MODELS = {name: build(name) for name in OPTIONS}


@dataclass(frozen=True)
class Arrival:
    """A request that comes before a step, and may be cancelled before another."""

    step: int
    prompt: list[int]
    sampling: SamplingHparams
    cancelled_at: int | None = None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 8),
        prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 1),
        sampling=st.builds(
            SamplingHparams,
            max_new_tokens=st.integers(1, CONTEXT),
            temperature=st.sampled_from([0.0, 0.7, 1.5]),
            top_k=st.sampled_from([None, 1, 5, VOCAB + 1]),
            top_p=st.sampled_from([0.0, 0.5, 1.0]),
            min_p=st.sampled_from([0.0, 0.05]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            seed=st.integers(0, 2**63 - 1),
        ),
        cancelled_at=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=6,
)


def run(model: TransformerLM, arrivals: Sequence[Arrival], slots: int, eos: int | None = None) -> list[Request]:
    """Decode all, and return them in the order of `arrivals`."""
    engine = Engine(model, eos_token_ids=() if eos is None else (eos,), max_batch_size=slots)
    requests: dict[int, Request] = {}
    step = 0
    while len(requests) < len(arrivals) or engine.has_work:
        for number, arrival in enumerate(arrivals):
            if arrival.step == step:
                requests[number] = engine.submit(arrival.prompt, arrival.sampling)
            if arrival.cancelled_at == step and number in requests:
                engine.cancel(requests[number])
        engine.step()
        step += 1
    return [requests[number] for number in range(len(arrivals))]


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=20)
@given(arrivals=ARRIVALS, slots=st.integers(1, 4), eos=st.none() | st.integers(0, VOCAB - 1))
def test_what_a_request_gets_depends_on_nothing_beside_it(
    name: str, arrivals: list[Arrival], slots: int, eos: int | None
) -> None:
    for arrival, request in zip(arrivals, run(MODELS[name], arrivals, slots, eos), strict=True):
        [alone] = run(MODELS[name], [Arrival(0, arrival.prompt, arrival.sampling)], 1, eos)
        if request.finish_reason == "cancelled":
            assert request.token_ids == alone.token_ids[: len(request.token_ids)]
            assert len(request.token_ids) < arrival.sampling.max_new_tokens
        else:
            assert (request.token_ids, request.finish_reason) == (alone.token_ids, alone.finish_reason)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 1), min_size=1, max_size=4),
    new=st.integers(1, CONTEXT),
    eos=st.none() | st.integers(0, VOCAB - 1),
)
def test_greedy_equals_the_plain_loop(name: str, prompts: list[list[int]], new: int, eos: int | None) -> None:
    sampling = SamplingHparams(temperature=0.0, max_new_tokens=new)
    requests = run(MODELS[name], [Arrival(place % 3, prompt, sampling) for place, prompt in enumerate(prompts)], 2, eos)
    for prompt, request in zip(prompts, requests, strict=True):
        steps = min(new, CONTEXT - len(prompt))
        expected = generate(MODELS[name], torch.tensor(prompt), steps, temperature=0, eos_token_id=eos)
        assert request.token_ids == expected.tolist()[len(prompt) :]


def test_every_reason_to_end() -> None:
    model = MODELS["plain"]
    free = run(model, [Arrival(0, [1, 2, 3], GREEDY)], 1)[0]
    assert free.finish_reason == "max_new_tokens"
    assert len(free.token_ids) == 6
    ended = run(model, [Arrival(0, [1, 2, 3], GREEDY)], 1, eos=free.token_ids[0])[0]
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[:1], "end_of_text")
    full = run(model, [Arrival(0, [1] * 13, GREEDY)], 1)[0]
    assert (len(full.token_ids), full.finish_reason) == (3, "context_length")


def test_a_request_that_waits_can_be_cancelled_and_a_finished_one_stays() -> None:
    engine = Engine(MODELS["plain"], max_batch_size=1)
    first, second, third = (engine.submit([number], GREEDY) for number in range(3))
    engine.step()
    assert engine.num_waiting == 2
    engine.cancel(second)
    list(engine.run())
    engine.cancel(third)
    assert [one.finish_reason for one in (first, second, third)] == ["max_new_tokens", "cancelled", "max_new_tokens"]
    assert second.token_ids == []
    assert engine.step() == []


def test_a_freed_slot_is_taken_by_the_next_step() -> None:
    engine = Engine(MODELS["plain"], max_batch_size=2)
    long, short, waits = (
        engine.submit([1], SamplingHparams(temperature=0.0, max_new_tokens=count)) for count in (6, 2, 2)
    )
    seen = [[token.request for token in engine.step()] for _ in range(5)]
    assert seen == [[long, short], [long, short], [long, waits], [long, waits], [long]]


def test_one_forward_a_step_and_only_the_needed_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "eager_is_slow_for_few_rows", lambda _: False)  # the hook is the model's
    model = MODELS["plain"]
    calls: list[tuple[int, ...]] = []
    assert model.lm_head is not None
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape[:-1])))
    run(model, [Arrival(0, [1, 2, 3], GREEDY), Arrival(0, [4], GREEDY), Arrival(0, [5, 6], GREEDY)], 4)
    handle.remove()
    assert calls == [(3,)] + [(3, 1)] * 5


def test_logprobs_are_those_of_the_model() -> None:
    model = MODELS["plain"]
    engine = Engine(model, max_batch_size=2)
    asked = engine.submit([1, 2, 3], SAMPLED, num_logprobs=3)
    none, only_chosen = engine.submit([7], SAMPLED), engine.submit([9], GREEDY, num_logprobs=0)
    tokens = list(engine.run())
    ids = torch.tensor([[1, 2, 3, *asked.token_ids]])
    expected = model(ids).log_softmax(-1)[0, 2:]
    for place, token in enumerate(token for token in tokens if token.request is asked):
        assert token.logprobs is not None
        assert token.logprobs.chosen == pytest.approx(expected[place, token.token_id].item(), abs=1e-6)
        values, likeliest = expected[place].topk(3)
        assert [number for number, _ in token.logprobs.likeliest] == likeliest.tolist()
        assert [value for _, value in token.logprobs.likeliest] == pytest.approx(values.tolist(), abs=1e-6)
        entropy = -(expected[place].exp() * expected[place]).sum().item()
        assert token.logprobs.entropy == pytest.approx(entropy, abs=1e-6)
    assert all(token.logprobs is None for token in tokens if token.request is none)
    chosen = [token.logprobs for token in tokens if token.request is only_chosen]
    assert all(part is not None and part.likeliest == [] and math.exp(part.chosen) > 1 / VOCAB for part in chosen)


@pytest.mark.parametrize("prompt", [[5], [1, 2, 3, 4, 5, 6], [7, 8]])
def test_a_prompt_is_scored_beside_others(prompt: list[int]) -> None:
    model = MODELS["plain"]
    engine = Engine(model, max_batch_size=3)
    engine.submit([1, 2, 3, 4], SAMPLED)
    scored = engine.submit(prompt, GREEDY, num_logprobs=2, score_prompt=True)
    other = engine.submit([3, 1], GREEDY, num_logprobs=1)
    engine.step()
    expected = model(torch.tensor([prompt])).log_softmax(-1)[0]
    assert len(scored.prompt_logprobs) == len(prompt) - 1
    for place, found in enumerate(scored.prompt_logprobs):
        assert found.chosen == pytest.approx(expected[place, prompt[place + 1]].item(), abs=1e-6)
        assert [number for number, _ in found.likeliest] == expected[place].topk(2).indices.tolist()
    assert other.prompt_logprobs == []
    with pytest.raises(ConfigError, match="score_prompt needs num_logprobs"):
        engine.submit(prompt, GREEDY, score_prompt=True)


def test_a_repetition_penalty_counts_prompt_and_text() -> None:
    model = MODELS["plain"]
    [request] = run(model, [Arrival(0, [1, 2, 3], GREEDY.model_copy(update={"repetition_penalty": 1e6}))], 1)
    everything = [1, 2, 3, *request.token_ids]
    assert len(set(everything)) == len(everything)


def test_modes_do_not_leak_between_steps() -> None:
    engine = Engine(MODELS["plain"], max_batch_size=1)
    engine.submit([1], GREEDY)
    engine.step()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompt", "num_logprobs", "message"),
    [
        ([], None, "the prompt is empty; .* end-of-text id"),
        ([1] * 16, None, "the prompt has 16 tokens, and 16 is the most .* to 15 or fewer"),
        ([40], None, "vocabulary ends at 39"),
        ([-1], None, "ids from -1"),
        ([1], 41, "num_logprobs must lie between 0 and 40"),
    ],
)
def test_impossible_requests_are_refused_at_once(prompt: list[int], num_logprobs: int | None, message: str) -> None:
    engine = Engine(MODELS["plain"])
    with pytest.raises(ConfigError, match=message):
        engine.submit(prompt, GREEDY, num_logprobs=num_logprobs)
    assert not engine.has_work


def test_stretches_of_neighbours() -> None:
    assert stretches([]) == []
    assert stretches([0, 1, 3, 5, 6, 7]) == [(0, 2), (3, 4), (5, 8)]


def test_each_of_several_end_of_text_ids_ends_a_continuation() -> None:
    model = MODELS["plain"]
    [free] = run(model, [Arrival(0, [1, 2, 3], SAMPLED)], 1)
    ids = free.token_ids
    place = next(place for place in range(2, len(ids)) if ids[place] not in ids[:place])
    never = next(token for token in range(VOCAB) if token not in ids)
    for ends, length in (({never, ids[place]}, place + 1), ({ids[place], ids[1]}, ids.index(ids[1]) + 1)):
        engine = Engine(model, eos_token_ids=ends, max_batch_size=1)
        request = engine.submit([1, 2, 3], SAMPLED)
        while engine.has_work:
            engine.step()
        assert (request.token_ids, request.finish_reason) == (ids[:length], "end_of_text")
