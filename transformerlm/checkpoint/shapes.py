"""Check that loaded weights match the configured model before memory is allocated for it."""

from collections.abc import Mapping
from typing import Any

import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model, state_shapes
from transformerlm.utils.errors import CheckpointError


def model_without_memory(hparams: ModelHparams, state: Mapping[str, torch.Tensor]) -> TransformerLM:
    """Return the model of `hparams` on the meta device; raise `CheckpointError` unless `state` has its weights.

    So memory is allocated only for weights that are known to be as large as the file.
    """
    problem = "it holds no weights by name"
    if isinstance(state, Mapping):
        problem = _misfit(state_shapes(hparams), state)
        if not problem:
            return build_model(hparams, device="meta")
    raise CheckpointError(f"the checkpoint does not fit the model: {problem}")


def _misfit(shapes: Mapping[str, torch.Size], state: Mapping[str, Any]) -> str:
    for name in sorted(shapes.keys() | state.keys()):
        found = tuple(state[name].shape) if isinstance(state.get(name), torch.Tensor) else None
        expected = tuple(shapes[name]) if name in shapes else None
        if found is None or found != expected:
            return f"{name} is {found or 'not there'} in the weights and {expected or 'not there'} by config.toml"
    return ""
