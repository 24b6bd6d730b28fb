"""Same results as `models.attention.grouped_attention` and `models.layers.rotate_pairs`, up to the order of sums.

Tested in tests/models/test_attention.py and tests/models/test_layers.py. PyTorch's attention kernel never holds all
scores in memory. In eager mode the complex product is about four times as fast as the real form, which torch.compile
needs instead, since it fuses real arithmetic only.
"""

import torch
from torch import Tensor, nn

from transformerlm.utils.dtypes import at_least_float32


def fused_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attend by PyTorch's kernel (Dao et al. 2022, FlashAttention)."""
    return nn.functional.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=is_causal, enable_gqa=q_BHTK.shape[-3] != k_BGSK.shape[-3]
    )


def rotate_as_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[2i], x[2i + 1]) of (..., d_k) as a complex number, multiplied by e^{i·angle}."""
    pairs = at_least_float32(x).unflatten(-1, (-1, 2)).contiguous()
    product = torch.view_as_complex(pairs) * torch.complex(cos, sin)
    return torch.view_as_real(product).flatten(-2).to(x.dtype)
