"""From logits to the next token: softmax, the top-k and top-p filters, and the draw.

All functions work on the last dimension (V, the vocabulary) and any leading ones at once.
"""

import torch
from torch import Tensor

from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError

# Logits divided by less might overflow; at this temperature the draw is greedy in all but name.
_GREEDY_BELOW = 1e-5


def softmax(x: Tensor, dim: int) -> Tensor:
    """Return `exp(x) / sum(exp(x))` along `dim`, computed in float32, in the type of `x`.

    The maximum is subtracted first, which changes nothing but keeps `exp` from overflowing.
    """
    wide = at_least_float32(x)
    exponentials = torch.exp(wide - wide.amax(dim=dim, keepdim=True))
    return (exponentials / exponentials.sum(dim=dim, keepdim=True)).to(x.dtype)


def top_p_filter(probs: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability is at least `p`; renormalise.

    Nucleus sampling (Holtzman et al. 2020, eq. 2). Of equally likely tokens the lower id goes first.
    `p = 0` keeps the most likely token alone, `p = 1` everything. `ConfigError` for other `p`.

    Args:
        probs: (..., V), each row summing to one.
    """
    check_top_p(p)
    if p == 1:
        return probs
    ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    before = at_least_float32(ordered).cumsum(dim=-1)[..., :-1]
    dropped = torch.nn.functional.pad(before >= p, (1, 0), value=False)
    kept = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(dropped, 0))
    return kept / kept.sum(dim=-1, keepdim=True)


def top_k_filter(probs: Tensor, k: int) -> Tensor:
    """Keep the `k` most likely tokens, and those as likely as the k-th; renormalise.

    `k` at or above V keeps everything. `ConfigError` for `k` below 1.

    Args:
        probs: (..., V), each row summing to one.
    """
    check_top_k(k)
    if k >= probs.shape[-1]:
        return probs
    smallest = probs.topk(k, dim=-1).values[..., -1:]
    kept = probs.masked_fill(probs < smallest, 0)
    return kept / kept.sum(dim=-1, keepdim=True)


def sample_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one id per row of logits (..., V): ids of shape (...).

    The logits are divided by `temperature`, then filtered by `top_k`, then by `top_p`. Temperature 0 is
    greedy: the most likely token, no randomness. `generator` must live on the device of the logits.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if is_greedy(temperature, top_k, top_p):
        return logits.argmax(dim=-1)
    probs = softmax(at_least_float32(logits) / temperature, dim=-1)
    if top_k is not None:
        probs = top_k_filter(probs, top_k)
    probs = top_p_filter(probs, top_p)
    drawn = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])


def is_greedy(temperature: float, top_k: int | None, top_p: float) -> bool:
    """Return whether these settings always take the most likely token."""
    return temperature < _GREEDY_BELOW or top_p == 0 or top_k == 1


def check_sampling(*, temperature: float, top_k: int | None, top_p: float) -> None:
    """Raise `ConfigError` for a sampling setting out of range."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 (greedy) or a positive number (got {temperature})")
    if top_k is not None:
        check_top_k(top_k)
    check_top_p(top_p)


def check_top_k(k: int) -> None:
    """Raise `ConfigError` if `k` keeps no token."""
    if k < 1:
        raise ConfigError(f"top-k must be at least 1 (got {k}); leave it out to keep all tokens")


def check_top_p(p: float) -> None:
    """Raise `ConfigError` if `p` is no probability."""
    if not 0 <= p <= 1:
        raise ConfigError(f"top-p must lie between 0 (greedy) and 1 (all tokens) (got {p})")
