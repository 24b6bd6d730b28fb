"""Causal multi-head self-attention with rotary positions, written out.

Shapes: B rows, T tokens, S keys, D = d_model, H query heads, G key-value heads, K head size (D / H, unless given).
Without a cache, any leading dimensions can replace B.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from transformerlm.hparams import ModelHparams
from transformerlm.models.kv_cache import LayerCache
from transformerlm.models.layers import Linear, RMSNorm, rotate_pairs
from transformerlm.utils.dtypes import at_least_float32

AttentionMask: TypeAlias = Any
"""Which tokens a token attends to: a boolean tensor, broadcastable to (B, H, T, S), True = attend. A faster attention
function may need another form."""

AttentionFunction = Callable[[Tensor, Tensor, Tensor, AttentionMask | None, bool], Tensor]
"""Maps queries (B, H, T, K), keys and values (B, G, S, K), a mask or None, and whether the mask is the causal one
(T = S; then no other is given) to (B, H, T, K). H is a multiple of G."""

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines of the tokens' positions, each (T, P) or (B, T, P)."""


def scaled_dot_product_attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `softmax(Q Kᵀ / sqrt(d_k)) V` (Vaswani et al. 2017, eq. 1).

    Args:
        Q, K, V: (..., T, d_k), (..., S, d_k) and (..., S, d_v).
        mask: boolean, broadcastable to (..., T, S); True means "attend". A query with no key to
            attend to gets zeros, as in PyTorch.
    """
    scores = at_least_float32(Q @ K.transpose(-2, -1)) / math.sqrt(Q.shape[-1])
    if mask is None:
        return torch.softmax(scores, dim=-1).to(V.dtype) @ V
    # The lowest number instead of -inf: a fully masked row then has a finite softmax and finite gradients
    # before its weights are set to zero.
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~mask, lowest), dim=-1).masked_fill(~mask, 0)
    return weights.to(V.dtype) @ V


def grouped_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend with H / G query heads to each key-value head (Ainslie et al. 2023, GQA): an `AttentionFunction`."""
    if is_causal:
        positions = torch.arange(q_BHTK.shape[-2], device=q_BHTK.device)
        mask = positions.unsqueeze(-1) >= positions
    group_size = q_BHTK.shape[-3] // k_BGSK.shape[-3]
    if group_size > 1:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(group_size, -3), v_BGSK.repeat_interleave(group_size, -3)
    return scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, mask)


def document_mask(ids_BT: Tensor, end_of_text_id: int) -> Tensor:
    """Return the mask (B, 1, T, T) that keeps attention causal and inside documents, which end with `end_of_text_id`.

        ids        a b . c d . e        attend     a b . c d . e        (the end-of-text id is shown as ".")
        document   0 0 0 1 1 1 2                 a ×
                                                 b × ×
                                                 . × × ×
                                                 c       ×
                                                 d       × ×
                                                 .       × × ×
                                                 e             ×

    Positions are not restarted: rotary attention depends on their differences only.
    """
    numbers_BT = document_numbers(ids_BT, end_of_text_id)
    places_T = torch.arange(ids_BT.shape[-1], device=ids_BT.device)
    same_BTT = numbers_BT.unsqueeze(-1) == numbers_BT.unsqueeze(-2)
    return (same_BTT & (places_T.unsqueeze(-1) >= places_T)).unsqueeze(1)


def document_numbers(ids_BT: Tensor, end_of_text_id: int) -> Tensor:
    """Return, for each token (B, T), the index of its document in the row, int32."""
    ends_BT = (ids_BT == end_of_text_id).to(torch.int32)
    return ends_BT.cumsum(-1, dtype=torch.int32) - ends_BT


class SelfAttention(nn.Module):
    """Causal self-attention: project, rotate queries and keys by position, attend, project back.

    It reads the settings `d_model`, `num_heads`, `d_head` and `num_kv_heads`. With fewer key-value heads than query
    heads, groups of query heads share one (GQA). With `qk_norm`, an RMS norm over the head size is applied to queries
    and keys before the rotation, as in Qwen3 (Henry et al. 2020 introduced the idea). With `qkv_bias` the three input
    projections have biases, as in Qwen2 (Yang et al. 2024, section 2.2.1).

    `attend` and `rotate` are the functions used for attention and rotation; `fast` has faster ones.
    """

    def __init__(
        self, settings: ModelHparams, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.d_head = settings.d_head
        self.num_heads, self.num_kv_heads = settings.num_heads, settings.num_kv_heads
        d_q, d_kv, bias = self.num_heads * self.d_head, self.num_kv_heads * self.d_head, settings.qkv_bias
        self.q_proj = Linear(settings.d_model, d_q, device=device, dtype=dtype, bias=bias)
        self.k_proj = Linear(settings.d_model, d_kv, device=device, dtype=dtype, bias=bias)
        self.v_proj = Linear(settings.d_model, d_kv, device=device, dtype=dtype, bias=bias)
        self.output_proj = Linear(d_q, settings.d_model, device=device, dtype=dtype)
        self.q_norm = RMSNorm(self.d_head, settings.norm_eps, device=device, dtype=dtype) if settings.qk_norm else None
        self.k_norm = RMSNorm(self.d_head, settings.norm_eps, device=device, dtype=dtype) if settings.qk_norm else None
        self.attend: AttentionFunction = grouped_attention
        self.rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate_pairs

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H · K), keys and values (B, T, G · K)."""
        return self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, cache: LayerCache | None = None, mask: AttentionMask | None = None
    ) -> Tensor:
        """Let each token attend to itself and all earlier tokens: (B, T, D) to (B, T, D).

        With a cache, the earlier tokens include the cached ones. Without a cache, `mask` may replace the causal mask:
        boolean, (T, T) or (B, 1, T, T), True = attend, or any form that `attend` accepts.
        """
        q_BTHK, k_BTGK, v_BTGK = (part.unflatten(-1, (-1, self.d_head)) for part in self.project(x_BTD))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)

        cos, sin = (table.unsqueeze(-2) for table in rotation)  # the same for every head
        q_BHTK = self.rotate(q_BTHK, cos, sin).transpose(-3, -2)
        k_BGSK = self.rotate(k_BTGK, cos, sin).transpose(-3, -2)
        v_BGSK = v_BTGK.transpose(-3, -2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.update(k_BGSK, v_BGSK)

        mask, is_causal = (mask, mask is None) if cache is None else (cache.attn_mask, cache.is_causal)
        attended_BHTK = self.attend(q_BHTK, k_BGSK, v_BGSK, mask, is_causal)
        return self.output_proj(attended_BHTK.transpose(-3, -2).flatten(-2))
