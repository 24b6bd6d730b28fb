"""Data parallelism: each process trains on its rows of the batch, and the gradients are averaged.

    ddp     every process has the whole model; gradients are averaged while the backward pass still runs
    fsdp    every process has a shard of each weight, gradient and moment; a block's weights are gathered just
            before it computes and freed after it; its gradients are averaged and sharded again

    batch of B rows ─┬─▶ rank 0: the first B/N rows ─▶ mean loss ─▶ gradient ─┐
                     └─▶ rank 1: the next B/N rows  ─▶ mean loss ─▶ gradient ─┴─▶ mean over the whole batch

Every process has the same number of tokens, so the mean over processes of their means is the mean over the batch.
DDP: Li et al. 2020, "PyTorch Distributed". FSDP: Zhao et al. 2023, "PyTorch FSDP"; here its second version,
`fully_shard`, in which parameters are DTensors.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transformerlm.distributed.dtensor import local_piece, norm_over_processes
from transformerlm.distributed.group import World
from transformerlm.models.transformer import Block

Strategy = Literal["single", "ddp", "fsdp"]

_BYTES_A_PARAMETER = 16  # weight, gradient and two moments in float32
_SHARE_OF_MEMORY = 0.5  # the rest is for activations


@dataclass(frozen=True)
class Parallelism:
    """A strategy and its processes; `single` for a world of one."""

    world: World = field(default_factory=World)
    strategy: Strategy = "single"

    @property
    def sharded(self) -> bool:
        """Whether each process has only a shard of every parameter."""
        return self.strategy == "fsdp"

    def wrap(self, loss: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Return the module to call in a training step instead of `loss`, which maps a batch to its loss.

        `loss` keeps its parameters under their names; with `fsdp` they become DTensors, so the optimizer is built after
        this, and activation checkpointing and compilation of blocks come before. `dtype` is the products' type.
        """
        if self.strategy == "ddp":
            return _replicate(loss)
        if self.strategy == "fsdp":
            _shard(loss, dtype, self.world)
        return loss

    def accumulation(self, wrapped: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward and backward of one micro-batch.

        Gradients accumulate in each process, and are averaged over processes once, with the last micro-batch.
        """
        if self.strategy == "ddp" and not last:
            return wrapped.no_sync()  # type: ignore[operator]
        if self.strategy == "fsdp":
            wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def norm(self, tensors: list[Tensor], norm_of: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Return `norm_of(tensors)`, their joint L2 norm; for sharded tensors, over the shards of all processes."""
        if not self.sharded or not tensors:
            return norm_of(tensors)
        return norm_over_processes(norm_of([local_piece(tensor) for tensor in tensors]), tensors[0])


ALONE = Parallelism()


def choose_strategy(wanted: Literal["auto", "ddp", "fsdp"], world: World, num_parameters: int) -> Strategy:
    """Return the strategy for `wanted`; `auto` shards a model whose training state would fill half of a GPU."""
    if world.size == 1:
        return "single"
    if wanted != "auto":
        return wanted
    if world.device.type != "cuda":
        return "ddp"
    memory = torch.cuda.get_device_properties(world.device).total_memory
    return "fsdp" if num_parameters * _BYTES_A_PARAMETER > _SHARE_OF_MEMORY * memory else "ddp"


def _replicate(loss: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():  # torch 2.13 has a new name for this, which older versions lack
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        # The buffers are the rotary tables, the same in every process.
        wrapped = DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)
    # DDP rebuilds its buckets after the first backward pass, in the order in which gradients were ready. With three or
    # more processes this changes the order of sums, and a resumed run would differ in the last digit from one that
    # was never interrupted. So run a dummy backward pass first.
    ids = torch.zeros(1, 2, dtype=torch.int64, device=next(loss.parameters()).device)
    with torch.compiler.set_stance("force_eager"):  # nothing is compiled for these shapes
        wrapped(ids, ids).backward()
    wrapped.zero_grad(set_to_none=True)
    return wrapped


def _shard(loss: nn.Module, dtype: torch.dtype, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:  # weights are rounded before communication, gradients widened before averaging
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in loss.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh)  # what is outside the blocks stays float32, as `precision` has it
