"""What is done to a model's blocks for a device, in place and in this order: attention, precision, compile, checkpoint.

    block.forward ──▶ compiled forward ──▶ checkpointed forward       what wraps it wraps the compiled one

Only `forward` of the instance is replaced. Names, hooks and parameters stay; what shards the model comes after.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transformerlm.distributed.precision import compute_in
from transformerlm.fast.compile import compile_fixed_shapes
from transformerlm.fast.flex_attention import SMALLEST_HEAD, attend_in_blocks, block_mask, document_mask
from transformerlm.models import TransformerBlock
from transformerlm.models.attention import AttentionFunction, AttentionMask, fused_attention, written_out_attention


def prepare_blocks(
    model: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
    activation_checkpointing: bool,
    mask_after: int | None = None,
) -> Callable[[Tensor], AttentionMask] | None:
    """Prepare `model`, or the `TransformerBlock`s in it, for training in `dtype` on `device`.

    If tokens are to attend inside documents, which end with the id `mask_after`, it returns the function that makes the
    mask of a batch of ids (B, T), in the form that the blocks then want.
    """
    in_blocks = mask_after is not None and _can_attend_in_blocks(model, device, compiled=compiled)
    compute_in(model, dtype)
    for block in blocks_of(model):
        block.attn.attend = attend_in_blocks if in_blocks else choose_attention(device, dtype, compiled=compiled)
        if compiled:
            block.forward = compile_fixed_shapes(block.forward)
        if activation_checkpointing:
            block.forward = _checkpointed(block.forward)
    if mask_after is None:
        return None
    return functools.partial(block_mask if in_blocks else document_mask, end_of_text_id=mask_after)


def blocks_of(model: nn.Module) -> list[TransformerBlock]:
    """Return the blocks in `model`, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, TransformerBlock)]


def choose_attention(device: torch.device, dtype: torch.dtype, *, compiled: bool) -> AttentionFunction:
    """Return the faster attention function.

    PyTorch's kernel, but for compiled bfloat16 on a CPU that multiplies it by matrix instructions: there the products
    over whole matrices of scores, with loops made by the compiler around them, take three quarters of the time
    (context of 256). In float32, without those instructions, they take longer than the kernel, which skips the half of
    the scores that causality forbids.
    """
    if compiled and device.type == "cpu" and dtype == torch.bfloat16:
        return written_out_attention
    return fused_attention


def _can_attend_in_blocks(model: nn.Module, device: torch.device, *, compiled: bool) -> bool:
    """Return whether FlexAttention can be used: compiled, on CUDA, and with heads that are not too small."""
    return compiled and device.type == "cuda" and all(b.attn.d_head >= SMALLEST_HEAD for b in blocks_of(model))


def _checkpointed(forward: Any) -> Any:
    """Return a `forward` that keeps its inputs only, and computes the rest again in the backward pass.

    "Training Deep Nets with Sublinear Memory Cost" (Chen et al. 2016): a third more arithmetic, and memory for the
    activations of one block instead of all.
    """
    return functools.partial(checkpoint, forward, use_reentrant=False)
