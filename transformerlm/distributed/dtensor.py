"""Tensors of which each process holds a piece (DTensors, as FSDP2 makes them of parameters).

What is computed element by element is computed on the pieces; only what needs a whole tensor gathers it. A plain
tensor passes through all of these unchanged, so that an optimizer has one body for both.
"""

# DTensor is imported where it is needed: it takes as long to load as torch, and without processes there is none.

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a DTensor, which only processes that train together have."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_piece(tensor: Tensor) -> Tensor:
    """Return this process's piece of a sharded tensor: the same memory, so that a change of it is a change of both."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a sharded tensor; every process calls this, for the same tensors in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(like: Tensor, value: Tensor) -> Tensor:
    """Return `value`, a whole tensor that every process has, sharded as `like` is; nothing is sent."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def norm_over_processes(norm: Tensor, like: Tensor) -> Tensor:
    """Return the L2 norm of all pieces, of which this process's have `norm`, if `like` is sharded; else `norm`."""
    if not is_sharded(like):
        return norm
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def on_local_vectors(update: Callable[..., None]) -> Callable[..., None]:
    """Return `update(param, grad, m, v, step, **settings)` that works on this process's pieces, as vectors.

    Vectors share the memory of the pieces. One function compiled for vectors serves parameters of every shape.
    """

    def update_vectors(param: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: Tensor, **settings: Any) -> None:
        pieces = [local_piece(tensor) for tensor in (param, grad, m, v)]
        if all(piece.is_contiguous() for piece in pieces):
            pieces = [piece.view(-1) for piece in pieces]
        update(*pieces, step, **settings)

    return update_vectors
