"""Data types by name, and the precision policy of the whole library.

The policy: weights are float32 while they are trained, and matrix products run in the type of the activations, to
which a `Linear` rounds its weight in each forward pass; a model for inference may hold its weights in
that type. What is sensitive to rounding is computed in float32 at least: RMS norms and their gains, softmax, rotary
tables and rotations, the cross-entropy, sums of gradients over tokens and micro-batches of what is a table (the token
embeddings, the output layer), gradient norms and the optimizer's moments. Each of these calls `at_least_float32` on its
input (or holds float32 state) and returns the type it was given where the result flows on.
"""

import torch

from transformerlm.utils.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_dtype(name: str) -> torch.dtype:
    """Return the `torch.dtype` called `name`; `ConfigError` lists the names there are."""
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of `dtype`, as `parse_dtype` reads it."""
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ConfigError(f"unsupported dtype {dtype}; use one of {', '.join(DTYPES)}")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return `x` as float32, or unchanged where it is float32 or float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
