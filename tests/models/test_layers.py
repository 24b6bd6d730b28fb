"""The layers against PyTorch's own, and what they promise about initialisation, types and errors."""

import math

import pytest
import torch
from torch import nn

from transformerlm.fast.attention import rotate_as_complex
from transformerlm.hparams import ModelHparams
from transformerlm.models.build import build_model
from transformerlm.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    SwiGLU,
    init_weights,
    rotate_pairs,
    truncated_normal_,
)
from transformerlm.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_linear_is_a_matrix_product() -> None:
    layer = Linear(5, 3)
    x = torch.randn(2, 4, 5, generator=generator())
    assert layer.weight.shape == (3, 5)
    torch.testing.assert_close(layer(x), torch.einsum("oi,bti->bto", layer.weight, x))


def test_linear_adds_a_bias_if_it_has_one() -> None:
    assert Linear(5, 3).bias is None
    layer = Linear(5, 3, bias=True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert torch.equal(layer.bias, torch.zeros(3))
    torch.nn.init.normal_(layer.bias, generator=generator())
    x = torch.randn(2, 4, 5, generator=generator())
    torch.testing.assert_close(layer(x), torch.einsum("oi,bti->bto", layer.weight, x) + layer.bias)


def test_embedding_looks_rows_up() -> None:
    layer = Embedding(7, 4)
    ids = torch.tensor([[0, 6], [3, 3]])
    assert torch.equal(layer(ids), layer.weight[ids])


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_rms_norm_equals_torch_with_gradients(eps: float) -> None:
    ours, theirs = RMSNorm(16, eps), nn.RMSNorm(16, eps)
    gains = torch.randn(16, generator=generator())
    x = torch.randn(3, 5, 16, generator=generator(1))
    results = []
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(gains)
        x_leaf = x.clone().requires_grad_()
        norm(x_leaf).square().sum().backward()
        results.append((norm(x), x_leaf.grad, norm.weight.grad))
    for ours_value, torch_value in zip(*results, strict=True):
        torch.testing.assert_close(ours_value, torch_value)


def test_rms_norm_computes_in_float32_and_returns_the_input_type() -> None:
    norm = RMSNorm(64)
    x = 300 * torch.randn(4, 64, generator=generator())  # squares overflow float16
    result = norm(x.half())
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), norm(x), atol=2e-3, rtol=2e-3)


def test_swiglu_is_its_formula() -> None:
    layer = SwiGLU(4, 6)
    x = torch.randn(2, 4, generator=generator())
    gate, up = x @ layer.w1.weight.T, x @ layer.w3.weight.T
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * up) @ layer.w2.weight.T)


def naive_rotation(x: torch.Tensor, theta: float, positions: list[int]) -> torch.Tensor:
    """The RoFormer formula for x (T, d_k), one 2 × 2 rotation matrix at a time."""
    d_k, rotated = x.shape[-1], torch.empty_like(x)
    for t, position in enumerate(positions):
        for i in range(d_k // 2):
            angle = position * theta ** (-2 * i / d_k)
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            rotated[t, 2 * i : 2 * i + 2] = matrix @ x[t, 2 * i : 2 * i + 2]
    return rotated


def test_rope_is_the_formula_of_the_paper() -> None:
    rope = RotaryPositionalEmbedding(100.0, 8, 32)
    x = torch.randn(2, 3, 5, 8, generator=generator())
    positions = [4, 0, 31, 7, 7]
    rotated = rope(x, torch.tensor(positions))
    for b in range(2):
        for h in range(3):
            torch.testing.assert_close(rotated[b, h], naive_rotation(x[b, h], 100.0, positions))


def test_rope_takes_positions_per_row_and_defaults_to_counting() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 4, 16)
    x = torch.randn(2, 3, 4, generator=generator())
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    rotated = rope(x, positions)
    torch.testing.assert_close(rotated[0], rope(x[0]))
    torch.testing.assert_close(rotated[1], rope(x[1], positions[1]))


def test_rope_products_depend_on_the_distance_only() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 8, 64)
    q, k = torch.randn(2, 1, 8, generator=generator())

    def product(m: int, n: int) -> torch.Tensor:
        return rope(q, torch.tensor([m])) @ rope(k, torch.tensor([n])).T

    torch.testing.assert_close(product(3, 1), product(43, 41))


def test_the_complex_rotation_equals_the_real_one() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 8, 16)
    x = torch.randn(2, 16, 8, generator=generator())
    torch.testing.assert_close(rotate_as_complex(x, *rope.rows(16)), rope(x))
    strided = torch.randn(8, 16, generator=generator()).T
    torch.testing.assert_close(rotate_as_complex(strided, *rope.rows(16)), rope(strided))


def test_rotation_takes_any_layout() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 4, 16)
    x = torch.randn(4, 16, generator=generator())
    torch.testing.assert_close(rope(x.T), rope(x.T.contiguous()))
    torch.testing.assert_close(
        rotate_pairs(x.T[:, 1:3], *rope.rows(16)), rotate_pairs(x.T[:, 1:3].clone(), *rope.rows(16))
    )


def test_rope_tables_stay_float32_and_out_of_the_state() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 8, 1024)
    cos = rope.cos.clone()
    rope.to(torch.bfloat16)
    assert rope.cos.dtype == rope.sin.dtype == torch.float32
    assert torch.equal(rope.cos, cos)
    assert rope.state_dict() == {}
    assert rope(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rope_tables_survive_the_meta_device() -> None:
    with torch.device("meta"):
        rope = RotaryPositionalEmbedding(10000.0, 8, 16)
    assert rope.cos.is_meta
    rope.to_empty(device="cpu")
    assert torch.equal(rope.cos, RotaryPositionalEmbedding(10000.0, 8, 16).cos)


def test_rope_tables_that_layers_share_are_built_once_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build = RotaryPositionalEmbedding._build_tables

    def count(self: RotaryPositionalEmbedding, device: torch.device) -> None:
        built.append(str(device))
        build(self, device)

    monkeypatch.setattr(RotaryPositionalEmbedding, "_build_tables", count)
    model = build_model(ModelHparams(vocab_size=8, context_length=16, d_model=8, num_layers=5, num_heads=2), seed=0)
    assert built == ["meta", "cpu"]
    model.to(torch.float64)
    model.to("cpu")
    model.to("meta")
    assert built == ["meta", "cpu", "meta"]


@pytest.mark.parametrize("positions", [[0, 16], [-1, 3]])
def test_rope_refuses_positions_outside_its_tables(positions: list[int]) -> None:
    rope = RotaryPositionalEmbedding(10000.0, 8, 16)
    with pytest.raises(ConfigError, match="do not fit the model's 0 to 15"):
        rope(torch.randn(2, 8), torch.tensor(positions))


def test_rope_refuses_a_sequence_longer_than_its_tables() -> None:
    rope = RotaryPositionalEmbedding(10000.0, 8, 16)
    with pytest.raises(ConfigError, match="17 positions asked for, but the model has 16"):
        rope(torch.randn(17, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linear(0, 3), "in_features must be at least 1"),
        (lambda: Embedding(3, -1), "embedding_dim must be at least 1"),
        (lambda: RMSNorm(0), "d_model must be at least 1"),
        (lambda: RotaryPositionalEmbedding(1e4, 7, 16), "even head size"),
        (lambda: RotaryPositionalEmbedding(-1.0, 8, 16), "theta must be positive"),
        (lambda: RotaryPositionalEmbedding(1e4, 8, 0), "max_seq_len must be at least 1"),
    ],
)
def test_impossible_sizes_are_named(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_truncated_normal_has_the_asked_standard_deviation_and_cut() -> None:
    draw = truncated_normal_(torch.empty(1000, 1000), 0.5, generator())
    assert draw.std().item() == pytest.approx(0.5, rel=3e-3)
    assert draw.mean().item() == pytest.approx(0, abs=3e-3)
    assert 1.45 < draw.abs().max().item() <= 1.5
    beyond_one_sigma = (draw.abs() > 0.5).float().mean().item()
    assert beyond_one_sigma == pytest.approx(0.32, abs=0.01)  # bell-shaped: 42 % if it were uniform


def test_linear_variance_is_glorots() -> None:
    layer = Linear(300, 700)
    init_weights(layer, generator())
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 1000), rel=1e-2)


def test_lower_precision_rounds_the_same_draw() -> None:
    wide, narrow = Linear(8, 8), Linear(8, 8, dtype=torch.bfloat16)
    init_weights(wide, generator(3))
    init_weights(narrow, generator(3))
    assert torch.equal(narrow.weight, wide.weight.bfloat16())


def test_a_linear_map_rounds_its_weight_and_the_gradient_comes_back_in_float32() -> None:
    linear = Linear(6, 5)
    weight = linear.weight.detach().bfloat16().requires_grad_()
    x = torch.randn(4, 6).bfloat16()
    output, expected = linear(x), x @ weight.T
    assert torch.equal(output, expected)
    output.sum().backward()
    expected.sum().backward()
    assert linear.weight.grad is not None and weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32
    assert torch.equal(linear.weight.grad, weight.grad.float())
