"""What is done to a model's blocks for a device, in place and in this order: attention, precision, compile, checkpoint.

    block.forward ──▶ compiled forward ──▶ checkpointed forward       what wraps it wraps the compiled one

Only `forward` of the instance is replaced. Names, hooks and parameters stay; what shards the model comes after.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transformerlm.distributed.compiling import compile_fixed_shapes
from transformerlm.distributed.documents import attend_in_blocks, goes_by_blocks
from transformerlm.distributed.precision import compute_in
from transformerlm.models import TransformerBlock
from transformerlm.models.attention import AttentionFunction, fused_attention, written_out_attention


def prepare_blocks(
    model: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    activation_checkpointing: bool,
    masked: bool = False,
) -> None:
    """Prepare `model`, or the `TransformerBlock`s in it, for training in `dtype` on `device`.

    `masked` blocks are always given a mask of documents, in the form that `documents.document_masks` chooses.
    """
    compute_in(model, dtype)
    for block in blocks_of(model):
        block.attn.attend = choose_attention(device, dtype, compiled=compiled, masked=masked)
        if compiled:
            block.forward = compile_fixed_shapes(block.forward)
        if activation_checkpointing:
            block.forward = _checkpointed(block.forward)


def blocks_of(model: nn.Module) -> list[TransformerBlock]:
    """Return the blocks in `model`, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, TransformerBlock)]


def choose_attention(
    device: torch.device, dtype: torch.dtype, *, compiled: bool, masked: bool = False
) -> AttentionFunction:
    """Return the faster attention function.

    PyTorch's kernel, but for compiled bfloat16 on a CPU that multiplies it by matrix instructions: there the products
    over whole matrices of scores, with loops made by the compiler around them, take three quarters of the time
    (context of 256). In float32, without those instructions, they take longer than the kernel, which skips the half of
    the scores that causality forbids. With masks of documents, where `documents` makes them of blocks, the kernel that
    skips blocks.
    """
    if masked and goes_by_blocks(device, compiled=compiled):
        return attend_in_blocks
    if compiled and device.type == "cpu" and dtype == torch.bfloat16:
        return written_out_attention
    return fused_attention


def _checkpointed(forward: Any) -> Any:
    """Return a `forward` that keeps its inputs only, and computes the rest again in the backward pass.

    "Training Deep Nets with Sublinear Memory Cost" (Chen et al. 2016): a third more arithmetic, and memory for the
    activations of one block instead of all.
    """
    return functools.partial(checkpoint, forward, use_reentrant=False)
