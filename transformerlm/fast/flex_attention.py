"""Same result as attention with `models.attention.document_mask`, by FlexAttention (Dong et al. 2024).

Tested in tests/fast/test_flex_attention.py. A plain mask has a boolean for each pair of tokens. FlexAttention goes
through blocks of 128 by 128 pairs instead: it skips those in which nothing attends, so that many short documents cost
less than a long one, needs no mask where everything attends, and calls a function in the others. It has to be compiled,
and has gradients on GPUs only.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transformerlm.fast.attention import fused_attention
from transformerlm.models.attention import document_numbers

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens per side of FlexAttention's blocks: its default."""

SMALLEST_HEAD = 16
"""Smallest head size for FlexAttention's compiled kernels."""


def block_mask(ids_BT: Tensor, end_of_text_id: int) -> "BlockMask":
    """Return the same mask for FlexAttention, without having a boolean for each pair of tokens.

    Document indices grow along a row, so a block's first and last are enough: a block of queries attends to part of an
    earlier block of keys if the keys end in the document in which the queries begin, and to all of it if both blocks
    contain only this document.
    """
    from torch.nn.attention.flex_attention import BlockMask  # takes seconds to load

    numbers_BT = document_numbers(ids_BT, end_of_text_id)
    num_tokens = ids_BT.shape[-1]
    firsts = torch.arange(0, num_tokens, BLOCK, device=ids_BT.device)
    first_BN, last_BN = numbers_BT[:, firsts], numbers_BT[:, (firsts + BLOCK - 1).clamp(max=num_tokens - 1)]
    earlier_NN = firsts.unsqueeze(-1) > firsts
    some_BNN = earlier_NN & (last_BN.unsqueeze(-2) == first_BN.unsqueeze(-1))
    all_BNN = earlier_NN & (first_BN.unsqueeze(-2) == last_BN.unsqueeze(-1))
    all_BNN &= (firsts + BLOCK <= num_tokens).unsqueeze(-1)  # a last block that is not full has no such pairs
    on_the_diagonal_NN = torch.eye(len(firsts), dtype=torch.bool, device=ids_BT.device)

    def attends(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (numbers_BT[row, query] == numbers_BT[row, key]) & (query >= key)

    return BlockMask.from_kv_blocks(
        *_listed(some_BNN & ~all_BNN | on_the_diagonal_NN),
        *_listed(all_BNN),
        BLOCK_SIZE=BLOCK,
        mask_mod=attends,
        seq_lengths=(num_tokens, num_tokens),
    )


def _listed(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each row of blocks, how many are True and which, those first; int32, (B, 1, N) and (B, 1, N, N)."""
    blocks_B1NN = blocks_BNN.unsqueeze(1).to(torch.int32)
    order = blocks_B1NN.argsort(dim=-1, descending=True, stable=True)
    return blocks_B1NN.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def attend_in_blocks(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: "BlockMask | None" = None, is_causal: bool = False
) -> Tensor:
    """Attend by FlexAttention, as `block_mask` says; without a mask as `fused_attention` does."""
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return fused_attention(q_BHTK, k_BGSK, v_BGSK, None, is_causal)
    return flex_attention(q_BHTK, k_BGSK, v_BGSK, block_mask=mask, enable_gqa=q_BHTK.shape[-3] != k_BGSK.shape[-3])
