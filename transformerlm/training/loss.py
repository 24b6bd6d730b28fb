"""The training loss: cross-entropy between logits and the token that came next."""

import torch
from torch import Tensor

from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `-log softmax(logits)[target]` in nats at every position, in float32.

    `.mean()` of it is the loss; `exp` of that the perplexity. The largest logit is subtracted before
    exponentiation (inside `log_softmax`), so that logits of any size neither overflow nor lose the loss.

    Args:
        logits: (..., V).
        targets: integer ids, (...), each below V.
    """
    if logits.shape[:-1] != targets.shape:
        raise ConfigError(
            f"logits of shape {tuple(logits.shape)} need targets of shape {tuple(logits.shape[:-1])} "
            f"(got {tuple(targets.shape)})"
        )
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
