"""A reference implementation of the Llama family, independent of this project's layers.

Llama, Mistral, Qwen2 (biases) and Qwen3 (norms of queries and keys), by Hugging Face's names and in its rotary layout.
An import records its logits, and an export is refused if this project's model computes other logits.

Shapes: T tokens, D width, H heads, G key-value heads, K head size, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from transformerlm.checkpoint.fingerprint import TOLERANCE, probe_ids
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import InteropError

Weights = Callable[[str], Tensor]
"""Maps Hugging Face's name of a weight to the weight, float32 on the CPU."""


def weight_shapes(hparams: ModelHparams) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the family's model with these settings."""
    assert hparams.vocab_size is not None
    d_model, d_ff, d_head = hparams.d_model, hparams.d_ff, _head_size(hparams)
    queries, keys = hparams.num_heads * d_head, hparams.num_kv_heads * d_head
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (d_model,),
        "self_attn.q_proj": (queries, d_model),
        "self_attn.k_proj": (keys, d_model),
        "self_attn.v_proj": (keys, d_model),
        "self_attn.o_proj": (d_model, queries),
        "post_attention_layernorm": (d_model,),
        "mlp.gate_proj": (d_ff, d_model),
        "mlp.up_proj": (d_ff, d_model),
        "mlp.down_proj": (d_model, d_ff),
    }
    if hparams.qk_norm:
        block |= {"self_attn.q_norm": (d_head,), "self_attn.k_norm": (d_head,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (hparams.vocab_size, d_model)}
    for layer in range(hparams.num_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        if hparams.qkv_bias:
            biases = {"q": queries, "k": keys, "v": keys}
            shapes |= {f"model.layers.{layer}.self_attn.{x}_proj.bias": (size,) for x, size in biases.items()}
    shapes["model.norm.weight"] = (d_model,)
    return shapes if hparams.tie_embeddings else shapes | {"lm_head.weight": (hparams.vocab_size, d_model)}


def require_family(hparams: ModelHparams, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `InteropError` unless `shapes`, by Hugging Face's names, are exactly those of the family's model."""
    expected = weight_shapes(hparams)
    for name in sorted(expected.keys() | shapes.keys()):
        ours, theirs = shapes.get(name), expected.get(name)
        if ours is None or theirs is None or tuple(ours) != theirs:
            raise InteropError(
                f"this code's model is not one of the Llama family, so it has no counterpart in other formats: {name} "
                f"is {'absent' if ours is None else tuple(ours)}, and {theirs or 'absent'} in the family"
            )


@torch.no_grad()
def family_logits(hparams: ModelHparams, weights: Weights) -> Tensor:
    """Return the logits (T, V), float32, of the fingerprint's input. Memory: one weight at a time."""
    table = weights("model.embed_tokens.weight")
    x_TD = table[probe_ids(hparams)]
    for layer in range(hparams.num_layers):
        x_TD = _block(hparams, lambda name, start=f"model.layers.{layer}.": weights(start + name), x_TD)
    features_TD = _rms_norm(x_TD, weights("model.norm.weight"), hparams.norm_eps)
    return linear(features_TD, table if hparams.tie_embeddings else weights("lm_head.weight"))


def require_same_logits(expected: Tensor, written: Tensor, *, architecture: str) -> None:
    """Raise `InteropError` unless our model's logits equal the reference's with the written weights, up to rounding."""
    difference, tolerance = (expected - written).abs().max().item(), TOLERANCE * max(1.0, expected.abs().max().item())
    if not difference <= tolerance:  # NaN is not
        raise InteropError(
            f"this code's model is not a {architecture}: with the same weights its logits differ by {difference:.2g} "
            f"(tolerance {tolerance:.2g}), so nothing is written; a changed layer cannot be exported"
        )


def _block(hparams: ModelHparams, weights: Weights, x_TD: Tensor) -> Tensor:
    def project(name: str, x: Tensor) -> Tensor:
        biased = hparams.qkv_bias and name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        return linear(x, weights(f"{name}.weight"), weights(f"{name}.bias") if biased else None)

    d_head, eps = _head_size(hparams), hparams.norm_eps
    h_TD = _rms_norm(x_TD, weights("input_layernorm.weight"), eps)
    q_HTK, k_GTK, v_GTK = (
        project(f"self_attn.{x}_proj", h_TD).unflatten(-1, (-1, d_head)).transpose(0, 1) for x in "qkv"
    )
    if hparams.qk_norm:
        q_HTK = _rms_norm(q_HTK, weights("self_attn.q_norm.weight"), eps)
        k_GTK = _rms_norm(k_GTK, weights("self_attn.k_norm.weight"), eps)
    q_HTK, k_GTK = _rotate(hparams, q_HTK), _rotate(hparams, k_GTK)
    groups = hparams.num_heads // hparams.num_kv_heads
    k_HTK, v_HTK = k_GTK.repeat_interleave(groups, dim=0), v_GTK.repeat_interleave(groups, dim=0)
    scores_HTT = q_HTK @ k_HTK.mT / math.sqrt(d_head)
    future_TT = torch.ones(scores_HTT.shape[-2:], dtype=torch.bool).triu(1)
    mixed_HTK = scores_HTT.masked_fill(future_TT, -math.inf).softmax(dim=-1) @ v_HTK
    x_TD = x_TD + project("self_attn.o_proj", mixed_HTK.transpose(0, 1).flatten(1))
    h_TD = _rms_norm(x_TD, weights("post_attention_layernorm.weight"), eps)
    return x_TD + project("mlp.down_proj", silu(project("mlp.gate_proj", h_TD)) * project("mlp.up_proj", h_TD))


def _rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * gain


def _rotate(hparams: ModelHparams, x_HTK: Tensor) -> Tensor:
    frequencies = _frequencies(hparams).repeat(2)
    angles_TK = torch.arange(x_HTK.shape[-2], dtype=torch.float32).unsqueeze(-1) * frequencies
    first, second = x_HTK.chunk(2, dim=-1)
    return x_HTK * angles_TK.cos() + torch.cat((-second, first), dim=-1) * angles_TK.sin()


def _frequencies(hparams: ModelHparams) -> Tensor:
    d_head = _head_size(hparams)
    plain = hparams.rope_theta ** -(torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    if hparams.rope_scaling is None:
        return plain
    assert hparams.rope_factor is not None
    if hparams.rope_scaling == "linear":
        return plain / hparams.rope_factor
    low, high, original = (
        hparams.rope_low_freq_factor,
        hparams.rope_high_freq_factor,
        hparams.rope_original_context,
    )
    assert low is not None
    assert high is not None
    assert original is not None
    turns = original * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / hparams.rope_factor


def _head_size(hparams: ModelHparams) -> int:
    return hparams.head_size or hparams.d_model // hparams.num_heads
