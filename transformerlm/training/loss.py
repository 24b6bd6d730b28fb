"""The training loss: cross-entropy between logits and the next token."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from transformerlm.models import TransformerLM
from transformerlm.models.attention import AttentionMask
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `-log softmax(logits)[target]` in nats at every position, in float32.

    Its `.mean()` is the loss, and `exp` of the loss is the perplexity. `log_softmax` subtracts the largest
    logit before exponentiation, so large logits do not overflow.

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


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, which can be wrapped and sharded for several devices.

    If given, `make_mask` computes the attention mask of each batch of inputs, once for all layers.
    """

    def __init__(self, model: TransformerLM, make_mask: Callable[[Tensor], AttentionMask] | None = None) -> None:
        super().__init__()
        self.model = model
        self.make_mask = make_mask

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the cross-entropy in nats, summed over the targets."""
        mask = None if self.make_mask is None else self.make_mask(inputs_BT)
        return cross_entropy(self.model(inputs_BT, mask=mask), targets_BT).sum()
