"""Switches on the faster versions of the core: `make_fast` makes every replacement, in the required order.

Names, hooks and parameters of the model do not change; sharding comes after this.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transformerlm.distributed.dtensor import on_local_vectors
from transformerlm.fast.attention import fused_attention, rotate_as_complex
from transformerlm.fast.chunked_loss import ChunkedLoss, chunk_rows_for, loss_and_gradient
from transformerlm.fast.compile import compile_any_length, compile_fixed_shapes
from transformerlm.fast.flex_attention import SMALLEST_HEAD, attend_in_blocks, block_mask
from transformerlm.hparams import TrainingHparams
from transformerlm.models import TransformerLM
from transformerlm.models.attention import AttentionFunction, document_mask, grouped_attention
from transformerlm.models.layers import rotate_pairs
from transformerlm.models.transformer import Block

UpdateFunction = Callable[..., None]
"""The arithmetic of AdamW for one parameter, `training.optim.adamw_update`."""


def make_fast(
    model: TransformerLM,
    update: UpdateFunction,
    *,
    training: TrainingHparams,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    mask_after: int | None = None,
) -> tuple[ChunkedLoss, UpdateFunction]:
    """Replace parts of `model` by faster versions for training; return a faster loss, and a faster `update`.

    Matrix products run in `dtype`. With `mask_after`, tokens attend inside documents, which end with this id.
    """
    in_blocks = mask_after is not None and _can_attend_in_blocks(model, device, compiled=compiled)
    make_mask = block_mask if in_blocks else document_mask
    blocks = blocks_of(model)
    loss = ChunkedLoss(model, chunk_rows=training.loss_chunk_rows or chunk_rows_for(device))
    for block in blocks:
        block.attn.attend = attend_in_blocks if in_blocks else choose_attention(device, dtype, compiled=compiled)
        block.attn.rotate = rotate_pairs if compiled else rotate_as_complex
    if mask_after is not None:
        loss.make_mask = functools.partial(make_mask, end_of_text_id=mask_after)
    if compiled:
        loss.rows = compile_fixed_shapes(loss_and_gradient)
        for block in blocks:
            block.forward = compile_fixed_shapes(block.forward)
        update = on_local_vectors(compile_any_length(update))
    if training.activation_checkpointing:
        for block in blocks:
            block.forward = _checkpointed(block.forward)
    return loss, update


def use_fused_kernels(model: nn.Module) -> None:
    """Let `model` use PyTorch's attention kernel and the complex rotation: for eager mode."""
    for block in blocks_of(model):
        block.attn.attend = fused_attention
        block.attn.rotate = rotate_as_complex


def blocks_of(model: nn.Module) -> list[Block]:
    """Return the blocks in `model`, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, Block)]


def choose_attention(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> AttentionFunction:
    """Return the faster attention function.

    That is PyTorch's kernel, except for compiled bfloat16 on a CPU with matrix instructions for it: there the
    written-out form, fused by the compiler, takes 75 % of the kernel's time (context of 256). In float32, without those
    instructions, it is slower than the kernel, which skips the half of the scores that causality forbids.
    """
    if compiled and device.type == "cpu" and dtype == torch.bfloat16:
        return grouped_attention
    return fused_attention


def _can_attend_in_blocks(model: nn.Module, device: torch.device, *, compiled: bool) -> bool:
    """Return whether FlexAttention can be used: compiled, on CUDA, and with heads that are not too small."""
    return compiled and device.type == "cuda" and all(b.attn.d_head >= SMALLEST_HEAD for b in blocks_of(model))


def _checkpointed(forward: Any) -> Any:
    """Return a `forward` that keeps only its inputs, and recomputes the rest in the backward pass.

    "Training Deep Nets with Sublinear Memory Cost" (Chen et al. 2016): a third more arithmetic, and memory for the
    activations of one block instead of all.
    """
    return functools.partial(checkpoint, forward, use_reentrant=False)
