"""Causal multi-head self-attention with rotary positions, and scaled dot-product attention written out.

Shapes: B rows, T tokens, S keys, D = d_model, H query heads, G key-value heads, K head size (D / H, if not given).
Leading dimensions other than one B work as well where no cache is given.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from transformerlm.models.kv_cache import LayerCache
from transformerlm.models.layers import (
    Linear,
    RMSNorm,
    RotaryPositionalEmbedding,
    require_positive,
    rotate_pairs,
)
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError


def scaled_dot_product_attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `softmax(Q Kᵀ / sqrt(d_k)) V` (Vaswani et al. 2017, eq. 1), written out.

    Args:
        Q, K, V: (..., T, d_k), (..., S, d_k) and (..., S, d_v).
        mask: boolean, broadcastable to (..., T, S); True means "attend". A query that may attend to
            nothing gets zeros, as in PyTorch.
    """
    scores = at_least_float32(Q @ K.transpose(-2, -1)) / math.sqrt(Q.shape[-1])
    if mask is None:
        return torch.softmax(scores, dim=-1).to(V.dtype) @ V
    # The lowest number rather than -inf: a row with nothing to attend to then has a softmax, and finite
    # gradients, before its weights are set to zero.
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~mask, lowest), dim=-1).masked_fill(~mask, 0)
    return weights.to(V.dtype) @ V


AttentionMask: TypeAlias = Any
"""Which token may attend to which: a boolean tensor, broadcastable to (B, H, T, S), True = attend. Attention functions
other than those here may want it in another form."""

AttentionFunction = Callable[[Tensor, Tensor, Tensor, AttentionMask | None, bool], Tensor]
"""Maps queries (B, H, T, K), keys and values (B, G, S, K), a mask or None, and whether the mask is the causal one
(T = S; then no other is given) to (B, H, T, K). H is a multiple of G."""


def fused_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend by PyTorch's kernel, which never has all scores in memory (Dao et al. 2022, FlashAttention)."""
    return nn.functional.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=is_causal, enable_gqa=q_BHTK.shape[-3] != k_BGSK.shape[-3]
    )


def written_out_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend by `scaled_dot_product_attention`, of which a compiler can make a few loops around two products."""
    if is_causal:
        positions = torch.arange(q_BHTK.shape[-2], device=q_BHTK.device)
        mask = positions.unsqueeze(-1) >= positions
    group_size = q_BHTK.shape[-3] // k_BGSK.shape[-3]
    if group_size > 1:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(group_size, -3), v_BGSK.repeat_interleave(group_size, -3)
    return scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, mask)


class MultiheadSelfAttentionRoPE(nn.Module):
    """Causal self-attention: project, rotate queries and keys by position, attend, project back.

    With `num_kv_heads` < `num_heads` groups of query heads share one key-value head (Ainslie et al. 2023,
    GQA). With `qk_norm` queries and keys pass an RMS norm over the head size before the rotation, as in
    Qwen3 (Henry et al. 2020 introduced the idea). With `qkv_bias` the three projections have biases, as in Qwen2
    (Yang et al. 2024, section 2.2.1), the one back has none. `head_size` is D / H where it is not given. Layers of one
    model may share one `rope`. `attend` is the attention function; which one is faster depends on the device.

    Raises `ConfigError` if the sizes do not divide, or the head size is odd.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        max_seq_len: int,
        theta: float,
        *,
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        head_size: int | None = None,
        norm_eps: float = 1e-5,
        rope: RotaryPositionalEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_head = checked_head_size(d_model, num_heads, num_kv_heads, head_size)
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        d_q, d_kv = num_heads * self.d_head, self.num_kv_heads * self.d_head
        self.q_proj = Linear(d_model, d_q, device=device, dtype=dtype, bias=qkv_bias)
        self.k_proj = Linear(d_model, d_kv, device=device, dtype=dtype, bias=qkv_bias)
        self.v_proj = Linear(d_model, d_kv, device=device, dtype=dtype, bias=qkv_bias)
        self.output_proj = Linear(d_q, d_model, device=device, dtype=dtype)
        self.q_norm = RMSNorm(self.d_head, norm_eps, device=device, dtype=dtype) if qk_norm else None
        self.k_norm = RMSNorm(self.d_head, norm_eps, device=device, dtype=dtype) if qk_norm else None
        self.attend: AttentionFunction = fused_attention
        self.rope = rope or RotaryPositionalEmbedding(theta, self.d_head, max_seq_len, device=device)

    def reset_parameters(self, generator: torch.Generator | None = None, residual_scale: float = 1.0) -> None:
        """Draw all weights; `output_proj`, which writes to the residual stream, times `residual_scale`."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.reset_parameters(generator)
        self.output_proj.reset_parameters(generator, residual_scale)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H · K), keys and values (B, T, G · K)."""
        return self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)

    def forward(
        self,
        x_BTD: Tensor,
        token_positions: Tensor | None = None,
        cache: LayerCache | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Let each token attend to itself and those before it: (B, T, D) to (B, T, D).

        `token_positions`, of shape (T,) or (B, T), are the positions of the tokens, by default counted
        from 0, or from the end of the cache. With a cache the tokens before them are those in the cache.
        Without one, `mask` says instead which tokens may attend to which, as `attend` wants it: a boolean
        tensor (T, T) or (B, 1, T, T), True = attend.
        """
        q_BTHK, k_BTGK, v_BTGK = (one.unflatten(-1, (-1, self.d_head)) for one in self.project(x_BTD))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)

        start = 0 if cache is None else cache.start
        cos, sin = (rows.unsqueeze(-2) for rows in self.rope.rows(x_BTD.shape[-2], token_positions, start))
        q_BHTK = rotate_pairs(q_BTHK, cos, sin).transpose(-3, -2)
        k_BGSK = rotate_pairs(k_BTGK, cos, sin).transpose(-3, -2)
        v_BGSK = v_BTGK.transpose(-3, -2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.update(k_BGSK, v_BGSK)

        mask, is_causal = (mask, mask is None) if cache is None else (cache.attn_mask, cache.is_causal)
        attended_BHTK = self.attend(q_BHTK, k_BGSK, v_BGSK, mask, is_causal)
        return self.output_proj(attended_BHTK.transpose(-3, -2).flatten(-2))


def checked_head_size(
    d_model: int, num_heads: int, num_kv_heads: int | None = None, head_size: int | None = None
) -> int:
    """Return `head_size`, or `d_model / num_heads` without it; `ConfigError` says which sizes do not fit together."""
    require_positive(d_model=d_model, num_heads=num_heads)
    if num_kv_heads is not None:
        require_positive(num_kv_heads=num_kv_heads)
        if num_heads % num_kv_heads:
            divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads (got {num_heads} and {num_kv_heads}); "
                f"num_kv_heads may be one of {divisors}"
            )
    if head_size is not None:
        require_positive(head_size=head_size)
        if head_size % 2:
            raise ConfigError(f"the head size must be even for rotary positions (got head_size = {head_size})")
        return head_size
    if d_model % num_heads:
        raise ConfigError(
            f"d_model must be a multiple of num_heads (got {d_model} and {num_heads}); "
            f"try d_model = {-(-d_model // num_heads) * num_heads}"
        )
    d_head = d_model // num_heads
    if d_head % 2:
        raise ConfigError(
            f"the head size must be even for rotary positions (got d_model / num_heads = {d_model} / "
            f"{num_heads} = {d_head}); try d_model = {(d_head + 1) * num_heads}"
        )
    return d_head
