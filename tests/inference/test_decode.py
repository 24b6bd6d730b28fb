"""Cached, batched decoding against the plain loop, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.inference.decode import decode_steps
from transformerlm.inference.generate import generate
from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError

VOCAB, CONTEXT = 40, 16
OPTIONS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True},
    "normed": {"qk_norm": True},
}


def build(name: str) -> TransformerLM:
    model = TransformerLM(VOCAB, CONTEXT, 32, 2, 4, 64, **OPTIONS[name])
    model.init_weights(torch.Generator().manual_seed(0))
    return model


MODELS = {name: build(name) for name in OPTIONS}
prompts_strategy = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 1), min_size=1, max_size=4
)


def rows_of(steps: list[list[int | None]]) -> list[list[int | None]]:
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12)
@given(prompts=prompts_strategy, new=st.integers(1, CONTEXT), eos=st.none() | st.integers(0, VOCAB - 1))
def test_greedy_equals_the_plain_loop(name: str, prompts: list[list[int]], new: int, eos: int | None) -> None:
    model = MODELS[name]
    steps = list(decode_steps(model, prompts, max_new_tokens=new, temperature=0, eos_token_id=eos))
    expected = [
        generate(
            model, torch.tensor(prompt), min(new, CONTEXT - len(prompt)), temperature=0, eos_token_id=eos
        ).tolist()[len(prompt) :]
        for prompt in prompts
    ]
    assert len(steps) == max(map(len, expected))
    for row, tokens in zip(rows_of(steps), expected, strict=True):
        assert row == tokens + [None] * (len(steps) - len(tokens))


def test_the_end_token_is_yielded_once() -> None:
    model, prompts = MODELS["plain"], [[1, 2, 3], [4]]
    free = rows_of(list(decode_steps(model, prompts, max_new_tokens=8, temperature=0)))
    eos = free[0][0]
    assert eos is not None and eos not in free[1]
    rows = rows_of(list(decode_steps(model, prompts, max_new_tokens=8, temperature=0, eos_token_id=eos)))
    assert rows[0] == [eos] + [None] * 7
    assert rows[1] == free[1]


def test_sampling_is_a_function_of_the_generator() -> None:
    first, again, other = (
        list(
            decode_steps(
                MODELS["plain"],
                [[1, 2, 3], [4]],
                max_new_tokens=12,
                top_k=30,
                top_p=0.95,
                generator=torch.Generator().manual_seed(seed),
            )
        )
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_one_forward_per_step_and_only_the_needed_logits() -> None:
    model = MODELS["plain"]
    calls: list[tuple[int, ...]] = []
    assert model.lm_head is not None
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape[:-1])))
    list(decode_steps(model, [[1, 2, 3], [4]], max_new_tokens=3, temperature=0))
    handle.remove()
    assert calls == [(2,), (2, 1), (2, 1)]


def test_modes_do_not_leak_between_steps() -> None:
    model = MODELS["plain"].train()
    steps = decode_steps(model, [[1]], max_new_tokens=3)
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()  # type: ignore[attr-defined]
    assert model.training
    model.eval()


def test_no_new_tokens_are_no_steps() -> None:
    assert list(decode_steps(MODELS["plain"], [[1]], max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt given"),
        ([[1], []], {}, "prompt 1 is empty; .* end-of-text id"),
        ([[1] * 16], {}, "prompt 0 has 16 tokens and the model's context 16, .* to 15 or fewer"),
        ([[40]], {}, "vocabulary ends at 39"),
        ([[-1]], {}, "ids from -1"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens must not be negative"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1]], {"top_p": 1.5}, "top-p"),
        ([[1]], {"top_k": 0}, "top-k"),
    ],
)
def test_impossible_requests_are_refused_by_the_call_itself(
    prompts: list[list[int]], options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        decode_steps(MODELS["plain"], prompts, **{"max_new_tokens": 4, **options})
