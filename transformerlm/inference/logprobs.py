"""What a model held likely: log-probabilities of tokens, and how much it was in doubt.

Shapes: N tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transformerlm.utils.dtypes import at_least_float32


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities, as the model gives them: before temperature, penalty and filters."""

    chosen: float
    likeliest: list[tuple[int, float]]
    """The most likely tokens and theirs, likeliest first."""
    entropy: float
    """Of the distribution, in nats: 0 where the model is certain, log V where all tokens are as likely."""
    sampling_probs: dict[int, float] | None = None
    """The probability with which each of these tokens is sampled, after temperature, penalty and filters; if asked."""


def token_logprobs(logits_NV: Tensor, token_ids: Sequence[int], *, num_likeliest: int) -> list[TokenLogprobs]:
    """Return what was held of the tokens that followed, and of the `num_likeliest` most likely ones."""
    logprobs_NV = at_least_float32(logits_NV).log_softmax(dim=-1)
    ids_N1 = torch.tensor(token_ids, dtype=torch.int64, device=logits_NV.device).unsqueeze(1)
    chosen = logprobs_NV.gather(1, ids_N1).squeeze(1).tolist()
    values, ids = (part.tolist() for part in logprobs_NV.topk(num_likeliest, dim=-1))
    entropies = torch.special.entr(logprobs_NV.exp()).sum(dim=-1).tolist()
    return [
        TokenLogprobs(of_chosen, list(zip(of_ids, of_values, strict=True)), entropy)
        for of_chosen, of_ids, of_values, entropy in zip(chosen, ids, values, entropies, strict=True)
    ]
