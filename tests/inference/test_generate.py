"""The generation loop."""

import pytest
import torch

from transformerlm.inference.generate import generate
from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError

CONTEXT = 8


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    model = TransformerLM(40, CONTEXT, 16, 2, 2, 32)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(1))


def test_greedy_tokens_are_the_argmax_of_the_last_context(model: TransformerLM) -> None:
    ids = random_ids(2, 3)
    result = generate(model, ids, 10, temperature=0)
    assert result.shape == (2, 13)
    assert torch.equal(result[:, :3], ids)
    for end in range(3, 13):
        window = result[:, max(0, end - CONTEXT) : end]
        assert torch.equal(result[:, end], model(window)[:, -1].argmax(-1))


def test_a_row_alone_has_the_shape_it_came_in(model: TransformerLM) -> None:
    ids = random_ids(3)
    result = generate(model, ids, 4, temperature=0)
    assert result.shape == (7,)
    assert result.dtype == ids.dtype
    assert torch.equal(result, generate(model, ids[None], 4, temperature=0)[0])


def test_sampling_is_a_function_of_the_generator(model: TransformerLM) -> None:
    first, again, other = (
        generate(model, random_ids(2, 3), 12, p=0.95, top_k=30, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_finished_rows_are_filled_and_the_loop_stops(model: TransformerLM) -> None:
    ids = random_ids(2, 3)
    free = generate(model, ids, 12, temperature=0)
    eos = int(free[0, 3])
    assert eos not in free[1, 3:5].tolist()
    stopped = generate(model, ids, 2, temperature=0, eos_token_id=eos)
    assert stopped[0, 3:].tolist() == [eos, eos]
    assert torch.equal(stopped[1], free[1, :5])
    alone = generate(model, ids[0], 12, temperature=0, eos_token_id=eos)
    assert alone.tolist() == [*ids[0].tolist(), eos]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_no_graph_is_built(model: TransformerLM, training: bool) -> None:
    modes = []
    handle = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.train(training)
    result = generate(model, random_ids(2), 2)
    handle.remove()
    assert model.training is training
    assert modes == [False, False]
    assert not result.requires_grad
    model(result[None])[0, -1, 0].backward()  # the result can be used in training


def test_no_steps_change_nothing(model: TransformerLM) -> None:
    assert torch.equal(generate(model, random_ids(2, 3), 0), random_ids(2, 3))


@pytest.mark.parametrize(
    ("ids", "steps", "message"),
    [
        (torch.zeros(0, dtype=torch.long), 1, "end-of-text id"),
        (torch.zeros(2, 0, dtype=torch.long), 1, "end-of-text id"),
        (torch.zeros(1, 1, 1, dtype=torch.long), 1, r"got shape \(1, 1, 1\)"),
        (torch.zeros(1, dtype=torch.long), -1, "steps must not be negative"),
    ],
)
def test_impossible_requests_are_refused(model: TransformerLM, ids: torch.Tensor, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(model, ids, steps)
