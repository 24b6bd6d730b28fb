"""Generation with a key-value cache; `engine` does the same for prompts that come and go."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from transformerlm.inference.sampling import check_sampling, sample_token
from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode, and back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def generate(
    model: TransformerLM,
    in_indices: Tensor,
    steps: int,
    temperature: float = 1.0,
    p: float = 1.0,
    eos_token_id: int | None = None,
    *,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue the ids `in_indices`, (T,) or (B, T), by up to `steps` tokens, and return all of them.

    The model sees the last `context_length` tokens at most. After `eos_token_id` a row is padded with it, and
    generation ends when all rows have it. `temperature`, `p` and `top_k` are as in `sample_token`;
    `in_indices` and `generator` must be on the model's device. Raises `ConfigError` for an empty prompt, a
    negative `steps` and settings out of range.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=p)
    if in_indices.ndim not in (1, 2) or in_indices.numel() == 0:
        raise ConfigError(
            f"the prompt must be ids of shape (T,) or (B, T), at least one per row (got shape "
            f"{tuple(in_indices.shape)}); to start from nothing, give the end-of-text id"
        )
    if steps < 0:
        raise ConfigError(f"steps must not be negative (got {steps})")
    ids_BT = in_indices if in_indices.ndim == 2 else in_indices.unsqueeze(0)
    finished_B = torch.zeros(ids_BT.shape[0], dtype=torch.bool, device=ids_BT.device)
    cache = model.new_cache(len(ids_BT), min(model.context_length, ids_BT.shape[1] + steps))
    with evaluation_mode(model):
        for _ in range(steps):
            if ids_BT.shape[1] <= model.context_length:
                logits_BV = model(ids_BT[:, cache.length :], cache=cache)[:, -1]
            else:  # the window moves, and with it the position of every token in it
                logits_BV = model(ids_BT[:, -model.context_length :])[:, -1]
            next_B = sample_token(logits_BV, temperature=temperature, top_k=top_k, top_p=p, generator=generator)
            if eos_token_id is not None:
                next_B = next_B.masked_fill(finished_B, eos_token_id)
                finished_B = next_B == eos_token_id
            ids_BT = torch.cat((ids_BT, next_B.unsqueeze(1).to(ids_BT.dtype)), dim=1)
            if eos_token_id is not None and finished_B.all():
                break
    return ids_BT if in_indices.ndim == 2 else ids_BT.squeeze(0)
