"""How the processes of a run share its work: each trains on its rows of the batch, and their gradients are averaged.

    ddp     every process holds the whole model; gradients are averaged while the backward pass still runs
    fsdp    every process holds a piece of each weight, gradient and moment; a block's weights are gathered
            just before it computes and dropped after it; its gradients are averaged and cut up again

    batch of B rows ──▶ rank 0: rows 0 … B/N − 1 ──▶ mean loss ──▶ gradient ─┐
                   └──▶ rank 1: the next B/N rows ──▶ mean loss ──▶ gradient ─┴─ mean: that of the whole batch

Every process has the same number of tokens, so the mean over processes of their means is the mean over the batch.
DDP: Li et al. 2020, "PyTorch Distributed". FSDP: Zhao et al. 2023, "PyTorch FSDP"; here its second version,
`fully_shard`, in which parameters are DTensors.
"""

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from transformerlm.distributed.group import World
from transformerlm.models import TransformerLM

Strategy = Literal["single", "ddp", "fsdp"]

_BYTES_A_PARAMETER = 16  # weight, gradient and two moments in float32
_SHARE_OF_MEMORY = 0.5  # the rest is for activations


@dataclass(frozen=True)
class Parallelism:
    """A strategy and the processes that follow it; `single` for a world of one."""

    world: World
    strategy: Strategy = "single"

    @property
    def sharded(self) -> bool:
        """Whether each process holds but a piece of every parameter."""
        return self.strategy == "fsdp"

    def shard(self, model: TransformerLM, dtype: torch.dtype) -> None:
        """Under `fsdp`, cut up the model's parameters in place, block by block; before the optimizer is built.

        Gathered weights have `dtype`, in which the block computes; gradients are averaged in float32. Activation
        checkpointing and compilation of the blocks come before.
        """
        if self.strategy != "fsdp":
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)  # what is outside the blocks: embeddings, norm, head

    def replicate(self, step_module: nn.Module) -> nn.Module:
        """Return the module to call in a training step: under `ddp` one that averages gradients, else the same.

        `step_module` maps a batch to its loss. It stays the owner of the parameters, under their own names.
        """
        if self.strategy != "ddp":
            return step_module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(step_module, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulation(self, module: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward and backward of one piece of a batch.

        Gradients are averaged over processes with the last piece, once for all of them.
        """
        if self.strategy == "ddp" and not last:
            return module.no_sync()  # type: ignore[operator]
        if self.strategy == "fsdp":
            for part in module.modules():
                if isinstance(part, TransformerLM):
                    part.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()


def choose_strategy(wanted: Literal["auto", "ddp", "fsdp"], world: World, num_parameters: int) -> Strategy:
    """Return what `wanted` means here; `auto` shards a model whose training state would fill half of a device."""
    if world.size == 1:
        return "single"
    if wanted != "auto":
        return wanted
    if world.device.type != "cuda":
        return "ddp"
    memory = torch.cuda.get_device_properties(world.device).total_memory
    return "fsdp" if num_parameters * _BYTES_A_PARAMETER > _SHARE_OF_MEMORY * memory else "ddp"
