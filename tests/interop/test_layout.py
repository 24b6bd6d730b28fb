"""The weights' names and rotary layout, against the two rotations written out."""

import pytest
import torch
from torch import Tensor

from transformerlm.hparams import ModelHparams
from transformerlm.interop.layout import (
    from_huggingface,
    halves_to_pairs,
    huggingface_name,
    is_rotated,
    our_name,
    pairs_to_halves,
    to_huggingface,
)
from transformerlm.models.build import build_model
from transformerlm.models.layers import RotaryPositionalEmbedding
from transformerlm.utils.errors import InteropError


def rotate_in_halves(x: Tensor, theta: float) -> Tensor:
    """Hugging Face's rotation of (T, K), written out: pair i is (x[i], x[i + K / 2])."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(len(x)), theta ** (-2 * torch.arange(half) / x.shape[-1]))
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def test_the_permutation_turns_one_rotation_into_the_other() -> None:
    x = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    permuted = torch.stack([pairs_to_halves(row, 10) for row in x])
    rotated = RotaryPositionalEmbedding(100.0, 10, 7)(x)
    expected = torch.stack([pairs_to_halves(row, 10) for row in rotated])
    torch.testing.assert_close(rotate_in_halves(permuted, 100.0), expected)


def test_rows_are_permuted_within_each_head() -> None:
    weight = torch.arange(12)
    assert pairs_to_halves(weight, 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    matrix = weight.unsqueeze(1).expand(12, 3)
    assert pairs_to_halves(matrix, 6)[:, 2].tolist() == pairs_to_halves(weight, 6).tolist()


@pytest.mark.parametrize("d_head", [2, 4, 6])
def test_there_and_back_is_the_identity(d_head: int) -> None:
    weight = torch.randn(12, 5)
    assert torch.equal(halves_to_pairs(pairs_to_halves(weight, d_head), d_head), weight)
    assert torch.equal(pairs_to_halves(halves_to_pairs(weight, d_head), d_head), weight)


@pytest.mark.parametrize(("shape", "d_head"), [((12, 5), 8), ((12,), 3), ((), 2), ((4,), 0)])
def test_what_is_no_heads_is_refused(shape: tuple[int, ...], d_head: int) -> None:
    with pytest.raises(InteropError, match="does not consist of heads of size"):
        pairs_to_halves(torch.zeros(shape), d_head)


def test_every_weight_of_a_model_has_a_name_and_comes_back() -> None:
    model = build_model(
        ModelHparams(
            vocab_size=30, context_length=8, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, qk_norm=True
        )
    )
    there = dict(to_huggingface(name, weight, 8) for name, weight in model.state_dict().items())
    back = dict(from_huggingface(name, weight, 8) for name, weight in there.items())
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())
    assert there["model.layers.1.mlp.down_proj.weight"].shape == (16, 64)
    assert there["model.layers.0.self_attn.k_norm.weight"].shape == (8,)


def test_names_of_biases() -> None:
    assert huggingface_name("layers.11.attn.k_proj.bias") == "model.layers.11.self_attn.k_proj.bias"
    assert our_name("model.layers.0.self_attn.o_proj.bias") == "layers.0.attn.output_proj.bias"
    assert is_rotated("layers.11.attn.k_proj.bias")
    assert not is_rotated("layers.11.attn.v_proj.weight")


@pytest.mark.parametrize(
    "name", ["layers.0.attn.rope.cos", "layers.-1.ln1.weight", "layers.01.ln1.weight", "", "model"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InteropError, match="has no counterpart"):
        huggingface_name(name)
    with pytest.raises(InteropError, match="has no counterpart"):
        our_name(f"model.{name}")
