"""Norms of activations and weights, measured with hooks: the model itself has no code for it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from transformerlm.distributed.dtensor import whole


@contextlib.contextmanager
def activation_norms(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Record the root mean square of every block's output while the context is open.

    Yields a dict that the forward passes fill: `layers.N` → scalar tensor (of the last pass). The hooks are
    removed when the context ends, so there is no cost otherwise.
    """
    norms: dict[str, torch.Tensor] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            norms[name] = output.detach().float().pow(2).mean().sqrt()

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules() if _is_block(name)]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


def weight_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the L2 norm of every parameter, by name."""
    return {name: whole(parameter.detach().float().norm()) for name, parameter in model.named_parameters()}


def _is_block(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return parent.rpartition(".")[2] == "layers" and last.isdigit()
