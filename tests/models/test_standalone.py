"""Attention and block by themselves do what they do inside a model."""

import pytest
import torch

from transformerlm.models import MultiheadSelfAttentionRoPE, TransformerBlock, TransformerLM
from transformerlm.utils.errors import ConfigError


def test_both_are_those_of_a_model() -> None:
    model = TransformerLM(50, 16, 24, 1, 4, 32, 500.0, num_kv_heads=2)
    block = TransformerBlock(24, 4, 32, 16, 500.0, num_kv_heads=2)
    attention = MultiheadSelfAttentionRoPE(d_model=24, num_heads=4, max_seq_len=16, theta=500.0, num_kv_heads=2)
    block.load_state_dict(model.layers[0].state_dict())
    attention.load_state_dict(model.layers[0].attn.state_dict())
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    rotation = model.rope.rows(5)
    assert torch.equal(block(x), model.layers[0](x, rotation))
    assert torch.equal(attention(x), model.layers[0].attn(x, rotation))
    assert torch.equal(
        attention(x, torch.arange(5) + 3), model.layers[0].attn(x, model.rope.rows(5, torch.arange(3, 8)))
    )


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="d_model must be divisible by num_heads = 3"):
        MultiheadSelfAttentionRoPE(10, 3, 16, 10000.0)
