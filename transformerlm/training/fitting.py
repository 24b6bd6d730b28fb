"""Whether weights that were read are those of the model that a configuration describes, before it takes memory."""

from collections.abc import Mapping
from typing import Any

import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.utils.errors import CheckpointError


def model_without_memory(hparams: ModelHparams, state: Mapping[str, torch.Tensor]) -> TransformerLM:
    """Return the model of `hparams` on the meta device; raise `CheckpointError` unless `state` has its weights.

    So memory for a model is taken only when it is known to be as large as the file.
    """
    problem = "it holds no weights by name"
    if isinstance(state, Mapping) and hparams.num_layers <= len(state):  # before so many layers are made
        model = build_model(hparams, device="meta")
        problem = _misfit({name: tuple(value.shape) for name, value in model.state_dict().items()}, state)
        if not problem:
            return model
    elif isinstance(state, Mapping):
        problem = f"config.toml has {hparams.num_layers:,} layers, the weights {len(state):,} tensors"
    raise CheckpointError(f"the checkpoint does not fit the model: {problem}")


def _misfit(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]) -> str:
    for name in sorted(shapes.keys() | state.keys()):
        found = tuple(state[name].shape) if isinstance(state.get(name), torch.Tensor) else None
        if found is None or found != shapes.get(name):
            return f"{name} is {found or 'not there'} in the weights and {shapes.get(name, 'not there')} by config.toml"
    return ""
