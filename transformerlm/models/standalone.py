"""Attention and block as separate modules, with their own rotary tables: for lessons, experiments and comparisons.

A `TransformerLM` has one pair of tables for all of its blocks, and computes their rows once per forward pass.
"""

from typing import Any

import torch
from torch import Tensor

from transformerlm.hparams import ModelHparams
from transformerlm.models.attention import SelfAttention
from transformerlm.models.layers import RotaryPositionalEmbedding
from transformerlm.models.transformer import Block


class MultiheadSelfAttentionRoPE(SelfAttention):
    """Causal self-attention of x (..., T, d_model), at positions (T,) or (..., T), by default 0, 1, … T − 1.

    `options` are `num_kv_heads`, `qk_norm`, `qkv_bias`, `head_size` and `norm_eps`, as in `ModelHparams`. Raises
    `ConfigError` for sizes that do not fit together.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        max_seq_len: int,
        theta: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        settings = ModelHparams.checked(d_model=d_model, num_heads=num_heads, **options)
        super().__init__(settings, device=device, dtype=dtype)
        self.rope = RotaryPositionalEmbedding(theta, settings.d_head, max_seq_len, device=device)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map (..., T, d_model) to (..., T, d_model)."""
        return super().forward(x, self.rope.rows(x.shape[-2], token_positions))


class TransformerBlock(Block):
    """A pre-norm block on x (..., T, d_model); arguments and errors as in `MultiheadSelfAttentionRoPE`."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        max_seq_len: int,
        theta: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        settings = ModelHparams.checked(d_model=d_model, num_heads=num_heads, d_ff=d_ff, **options)
        super().__init__(settings, device=device, dtype=dtype)
        self.rope = RotaryPositionalEmbedding(theta, settings.d_head, max_seq_len, device=device)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Map (..., T, d_model) to (..., T, d_model)."""
        return super().forward(x, self.rope.rows(x.shape[-2], token_positions))
