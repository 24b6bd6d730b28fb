"""Builds a model from settings."""

import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models.transformer import TransformerLM
from transformerlm.utils.errors import ConfigError


def build_model(
    hparams: ModelHparams,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> TransformerLM:
    """Return the model that `hparams` describe; its weights are a function of `seed` (on any device) if given.

    Raises `ConfigError` if `vocab_size` is unset or the sizes do not fit together.
    """
    if hparams.vocab_size is None:
        raise ConfigError("vocab_size is not set, and no data or checkpoint gives it")
    values = hparams.model_dump()
    if seed is None:
        return TransformerLM(**values, device=device, dtype=dtype)
    model = TransformerLM(**values, device="meta", dtype=dtype)
    model.materialise("cpu")
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.to(device)


def state_shapes(hparams: ModelHparams) -> dict[str, torch.Size]:
    """Return the shape of every weight of the model that `hparams` describe, without building all its layers.

    Raises `ConfigError` like `build_model`.
    """
    one = build_model(hparams.model_copy(update={"num_layers": 1, "context_length": 1}), device="meta")
    shapes: dict[str, torch.Size] = {}
    for name, weight in one.state_dict().items():
        before, number, rest = name.partition("layers.0.")
        names = [f"{before}layers.{layer}.{rest}" for layer in range(hparams.num_layers)] if number else [name]
        shapes.update((each, weight.shape) for each in names)
    return shapes
