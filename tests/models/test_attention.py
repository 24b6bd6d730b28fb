"""Attention: the written-out formula, PyTorch's fused one, and the module around it."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as functional

from transformerlm.fast.attention import fused_attention
from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.attention import (
    Rotation,
    SelfAttention,
    grouped_attention,
    scaled_dot_product_attention,
)
from transformerlm.models.layers import RotaryPositionalEmbedding
from transformerlm.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = generator()
    q = torch.randn(2, 3, 5, 8, generator=draw)
    k = torch.randn(2, 3, 7, 8, generator=draw)
    return q, k, torch.randn(2, 3, 7, 4, generator=draw)


def test_written_out_attention_equals_torch() -> None:
    q, k, v = random_qkv()
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v), functional.scaled_dot_product_attention(q, k, v))


def test_written_out_attention_with_a_mask_equals_torch_with_gradients() -> None:
    mask = torch.rand(2, 1, 5, 7, generator=generator(1)) < 0.6
    mask[..., 0] = True
    results = []
    for attention in (scaled_dot_product_attention, functional.scaled_dot_product_attention):
        leaves = [x.requires_grad_() for x in random_qkv()]
        output = attention(*leaves, mask)
        output.square().sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_query_that_attends_to_nothing_gets_zeros_and_finite_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in random_qkv())
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    output = scaled_dot_product_attention(q, k, v, mask)
    assert torch.equal(output[..., 2, :], torch.zeros(2, 3, 4))
    output.sum().backward()
    for leaf in (q, k, v):
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_softmax_is_computed_in_float32() -> None:
    q, k, v = (x.bfloat16() for x in random_qkv())
    output = scaled_dot_product_attention(q, k, v)
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(8)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, torch.softmax(scores, -1).bfloat16() @ v)


def attention(d_model: int, num_heads: int, **settings: Any) -> SelfAttention:
    return SelfAttention(ModelHparams.checked(d_model=d_model, num_heads=num_heads, **settings))


def rope_of(layer: SelfAttention) -> RotaryPositionalEmbedding:
    return RotaryPositionalEmbedding(10000.0, layer.d_head, 64)


def rotation(layer: SelfAttention, x: torch.Tensor, positions: torch.Tensor | None = None) -> Rotation:
    return rope_of(layer).rows(x.shape[-2], positions)


def written_out(layer: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    """The module's output, head by head, from its weights and the written-out formula."""
    seq, size, per_group = x.shape[-2], layer.d_head, layer.num_heads // layer.num_kv_heads
    mask = torch.ones(seq, seq, dtype=torch.bool).tril()
    rope = rope_of(layer)
    heads = []
    for head in range(layer.num_heads):
        own = slice(head * size, (head + 1) * size)
        group = slice(head // per_group * size, (head // per_group + 1) * size)
        q, k, v = x @ layer.q_proj.weight[own].T, x @ layer.k_proj.weight[group].T, x @ layer.v_proj.weight[group].T
        if layer.q_proj.bias is not None:
            q, k, v = q + layer.q_proj.bias[own], k + layer.k_proj.bias[group], v + layer.v_proj.bias[group]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        heads.append(scaled_dot_product_attention(rope(q), rope(k), v, mask))
    return torch.cat(heads, dim=-1) @ layer.output_proj.weight.T


@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize(("qk_norm", "options"), [(False, {}), (True, {}), (True, {"head_size": 10, "qkv_bias": True})])
def test_module_equals_the_written_out_version(num_kv_heads: int | None, qk_norm: bool, options: dict) -> None:
    layer = attention(24, 4, num_kv_heads=num_kv_heads, qk_norm=qk_norm, **options)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        if projection.bias is not None:
            torch.nn.init.normal_(projection.bias, generator=generator(1))
    x = torch.randn(2, 9, 24, generator=generator())
    torch.testing.assert_close(layer(x, rotation(layer, x)), written_out(layer, x))


def test_positions_are_relative() -> None:
    layer = attention(16, 2)
    x = torch.randn(2, 6, 16, generator=generator())
    plain = layer(x, rotation(layer, x))
    shifted = layer(x, rotation(layer, x, torch.arange(6) + 50))
    torch.testing.assert_close(shifted, plain, atol=1e-5, rtol=1e-4)
    positions = torch.stack((torch.arange(6), torch.arange(6) * 2))
    both = layer(x, rotation(layer, x, positions))
    torch.testing.assert_close(both[1], layer(x[1:], rotation(layer, x, positions[1]))[0])
    assert not torch.allclose(both[1], plain[1], atol=1e-4)


def test_leading_dimensions_are_free() -> None:
    layer = attention(16, 2)
    x = torch.randn(2, 3, 6, 16, generator=generator())
    torch.testing.assert_close(layer(x, rotation(layer, x))[1, 2], layer(x[1, 2], rotation(layer, x)))


def test_the_state_holds_the_weights_alone() -> None:
    names = {"q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm"}
    assert set(attention(16, 2, qk_norm=True).state_dict()) == {f"{name}.weight" for name in names}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 10, "num_heads": 3}, "d_model must be divisible by num_heads = 3 .got 10.; try 12"),
        ({"d_model": 9, "num_heads": 3}, "d_model .* must be even .*; try 12"),
        (
            {"num_heads": 4, "num_kv_heads": 3},
            r"num_kv_heads must divide num_heads = 4 .*; use one of \[1, 2, 4\]",
        ),
        ({"num_heads": 4, "num_kv_heads": 0}, "num_kv_heads should be greater than 0"),
        ({"num_heads": 0}, "num_heads should be greater than 0"),
        ({"head_size": 7}, "head_size should be a multiple of 2 .got 7"),
        ({"head_size": 0}, "head_size should be greater than 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_a_fix(sizes: dict[str, int], message: str) -> None:
    values = {"vocab_size": 50, "context_length": 16, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32}
    with pytest.raises(ConfigError, match=message):
        TransformerLM(**{**values, **sizes})


def test_a_head_size_of_its_own_need_not_divide_the_width() -> None:
    assert attention(9, 3, head_size=8).q_proj.weight.shape == (24, 9)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_both_attention_functions_give_the_same_output_and_gradients(kv_heads: int, masked: bool) -> None:
    draw = generator(2)
    mask = torch.rand(6, 6, generator=draw) < 0.7 if masked else None
    if mask is not None:
        mask.fill_diagonal_(True)
    shapes = [(2, 4, 6, 8), (2, kv_heads, 6, 8), (2, kv_heads, 6, 8)]
    tensors = [torch.randn(shape, generator=draw) for shape in shapes]
    results = []
    for attend in (grouped_attention, fused_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = attend(*leaves, mask, not masked)
        output.square().sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for written_out, fused in zip(*results, strict=True):
        torch.testing.assert_close(written_out, fused, rtol=1e-5, atol=1e-5)
