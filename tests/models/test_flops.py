"""Parameter and FLOP counts against counts by hand and against PyTorch's FLOP counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformerlm.models import TransformerLM, flops_per_token, num_parameters

D, LAYERS, FF, VOCAB, CONTEXT = 32, 3, 64, 100, 16
BLOCK = 4 * D * D + 3 * D * FF


def build(**options) -> TransformerLM:
    return TransformerLM(VOCAB, CONTEXT, D, LAYERS, 4, FF, **options)


@pytest.mark.parametrize(("tied", "tables"), [(False, 2), (True, 1)])
def test_parameters(tied: bool, tables: int) -> None:
    model = build(tie_embeddings=tied)
    blocks = LAYERS * (BLOCK + 2 * D) + D
    assert num_parameters(model) == blocks + tables * VOCAB * D
    assert num_parameters(model, non_embedding=True) == blocks


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_the_formula(tied: bool) -> None:
    model = build(tie_embeddings=tied)
    matrices = LAYERS * BLOCK + VOCAB * D
    assert flops_per_token(model) == 6 * matrices + 12 * LAYERS * D * CONTEXT
    assert flops_per_token(model, 8) == 6 * matrices + 12 * LAYERS * D * 8


@pytest.mark.parametrize("options", [{"num_kv_heads": 2}, {"head_size": 12, "qkv_bias": True}])
def test_forward_flops_equal_what_torch_counts(options: dict) -> None:
    model = build(**options)
    # The fused CPU kernel is unknown to the counter; the plain one is made of products it counts.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(2, CONTEXT, dtype=torch.long))
    assert counter.get_total_flops() == pytest.approx(2 * CONTEXT * flops_per_token(model) / 3, rel=1e-6)
