"""Helpers for sharded tensors (DTensors, which FSDP2 makes of parameters).

Elementwise operations use the local shards; only operations on a whole tensor gather it. A plain tensor passes through
all of these functions unchanged, so an optimizer needs no separate code for it.
"""

# DTensor is imported where it is needed: it loads as slowly as torch, and a single process does not use it.

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a DTensor, which exists only in distributed training."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_piece(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor; it shares the memory, so in-place changes affect both."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a sharded tensor; every process calls this, for the same tensors in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(like: Tensor, value: Tensor) -> Tensor:
    """Return `value`, a whole tensor that every process has, with the sharding of `like`; without communication."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def norm_over_processes(norm: Tensor, like: Tensor) -> Tensor:
    """Return the L2 norm over all processes if `like` is sharded, from this process's `norm`; else `norm`."""
    if not is_sharded(like):
        return norm
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def on_local_vectors(update: Callable[..., None]) -> Callable[..., None]:
    """Return `update(param, grad, m, v, step, **settings)` that works on this process's shards, as vectors.

    Vectors share the memory of the shards. One function compiled for vectors works for parameters of every shape.
    """

    def update_vectors(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: Tensor, **settings: Any) -> None:
        pieces = [local_piece(tensor) for tensor in (param, grad, m, v)]
        if all(piece.is_contiguous() for piece in pieces):
            pieces = [piece.view(-1) for piece in pieces]
        update(*pieces, step, **settings)

    return update_vectors
