"""The cost of int8 weights: bits per byte of a text with the original and with the rounded weights."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from transformerlm.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformerlm.models import TransformerLM
    from transformerlm.training.data import Tokens

_WINDOWS, _BATCH = 256, 16


def bits_per_byte(model: "TransformerLM", path: Path) -> dict[str, float]:
    """Return `bits_per_byte.weights` and `bits_per_byte.int8`, over windows spread evenly over a token file.

    Raises `ConfigError` if its vocabulary is larger than the model's.
    """
    from transformerlm.fast.decoding import with_int8_weights
    from transformerlm.training import TokenDataset

    dataset = TokenDataset.open(path, context_length=model.context_length)
    if dataset.info.vocab_size > model.vocab_size:
        raise ConfigError(f"{path}: has a vocabulary of {dataset.info.vocab_size}, the model of {model.vocab_size}")
    return {
        f"bits_per_byte.{name}": _mean_loss(one, dataset.tokens) / math.log(2) / dataset.bytes_per_token()
        for name, one in (("weights", model), ("int8", with_int8_weights(model)))
    }


def _mean_loss(model: "TransformerLM", tokens: "Tokens") -> float:
    """Return the mean loss in nats per token."""
    import torch

    from transformerlm.training import cross_entropy
    from transformerlm.training.data import validation_windows

    device = model.token_embeddings.weight.device
    batches = validation_windows(
        tokens, windows=_WINDOWS, batch_size=_BATCH, context_length=model.context_length, device=device
    )
    with torch.inference_mode():
        losses = [cross_entropy(model(inputs), targets).flatten() for inputs, targets in batches]
    return torch.cat(losses).double().mean().item()
