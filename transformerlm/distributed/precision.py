"""Float32 weights, products in bfloat16: the policy of `utils.dtypes`, applied to a model in place.

    float32 master weight ──rounded once a forward pass──▶ bf16 copy ─▶ product with bf16 activations
    float32 gradient ◀──widened──── bf16 gradient of the copy ◀─────────┘

The rounding is a step of the forward pass like any other, so autograd brings the gradient back to the float32 weight,
where gradients of several micro-batches add up. Optimizer and checkpoint know no other weights. Autocast gives
float32 weights as well, but keeps the activations between products in float32, and casts them at each of them.

The type flows with the activations: the embedding's rows are rounded, and from there on every `Linear` rounds its
weight, and bias, to the type of its input. What is not a `Linear` sees the float32 weight: the table, whose gradient
is a sum over all occurrences of a token, the norms' gains, and the output layer, which the loss rounds itself.
"""

from types import MethodType

import torch
from torch import Tensor, nn

from transformerlm.models.layers import Embedding, Linear


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the float32 `model` compute its products in `dtype`; its weights stay as they are.

    Does nothing for float32. Weights of another type (of a sharded model, say, whose shards are rounded before they
    are sent) are used as they come if `dtype` is theirs.
    """
    if dtype == torch.float32:
        return
    for module in model.modules():
        if isinstance(module, Embedding):
            module.register_forward_hook(_Round(dtype))
        elif isinstance(module, Linear):
            # The instance's own `forward` comes before the class's, and leaves hooks and names alone.
            module.forward = MethodType(_linear_in_the_type_of_its_input, module)


class _Round:
    """A forward hook that rounds a module's output."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.to(self.dtype)


def _linear_in_the_type_of_its_input(self: Linear, x: Tensor) -> Tensor:
    bias = None if self.bias is None else self.bias.to(x.dtype)
    return nn.functional.linear(x, self.weight.to(x.dtype), bias)
