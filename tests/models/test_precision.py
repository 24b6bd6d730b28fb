"""Products in bfloat16 with float32 weights: what is rounded, what is not, and where gradients arrive."""

import copy

import pytest
import torch
from torch import nn

from transformerlm.fast.chunked_loss import ChunkedLoss
from transformerlm.models import TransformerLM


def small_model(**settings: bool) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(40, 8, 32, 2, 2, 64, **settings)


def small_batch() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = torch.randint(0, 40, (2, 3, 8), generator=torch.Generator().manual_seed(1))
    return inputs, targets


@pytest.mark.parametrize(
    "settings", [{}, {"tie_embeddings": True, "qk_norm": True}, {"qkv_bias": True, "head_size": 6}]
)
def test_a_model_is_that_of_autocast_to_the_precision_of_bfloat16(settings: dict[str, bool]) -> None:
    model = small_model(**settings)
    exact, rounded = ChunkedLoss(model, chunk_rows=16), ChunkedLoss(copy.deepcopy(model), chunk_rows=16)
    rounded.model.compute_dtype = torch.bfloat16
    losses = [loss(*small_batch()) for loss in (exact, rounded)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    for name, parameter in rounded.model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        expected = model.get_parameter(name).grad
        assert expected is not None
        assert nn.functional.cosine_similarity(parameter.grad.flatten(), expected.flatten(), dim=0) > 0.99, name


def test_what_flows_between_blocks_is_bfloat16_and_no_name_changes() -> None:
    model = small_model()
    names = list(model.state_dict())
    model.compute_dtype = torch.bfloat16
    seen: list[torch.dtype] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    assert model.hidden_states(small_batch()[0]).dtype == torch.bfloat16
    assert seen == [torch.bfloat16] * 2
    assert list(model.state_dict()) == names
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_gradient_of_a_frequent_token_is_summed_in_float32() -> None:
    model = TransformerLM(4, 8, 8, 1, 1, 8)
    model.compute_dtype = torch.bfloat16
    embedded = model.token_embeddings(torch.zeros(4096, dtype=torch.long)).to(model.compute_dtype)
    embedded.sum().backward()
    gradient = model.token_embeddings.weight.grad
    assert gradient is not None and gradient[0, 0] == 4096  # bfloat16 stops counting at 256
