"""Cached decoding of several prompts of different lengths at once, one step at a time.

The prompts are padded on the right and run once through the model (prefill), which fills the key-value
cache; from then on every step feeds one new token per row. See `models.kv_cache` for why padding needs
no attention mask of its own.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from transformerlm.inference.generate import evaluation_mode
from transformerlm.inference.sampling import check_sampling, sample_token
from transformerlm.models import KVCache, TransformerLM
from transformerlm.utils.errors import ConfigError


def decode_steps(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[list[int | None]]:
    """Yield, after each step, the new token of each row, and None for rows that are finished.

    A row is finished after `max_new_tokens`, after `eos_token_id` (which it yields, once), or when prompt
    and continuation fill the model's context. The steps end with the last row. Sampling settings are
    those of `sample_token`. Arguments are checked by the call itself, before the first step is asked for.

    Raises `ConfigError` for no prompt, an empty one, one that leaves no room for a new token, ids outside
    the vocabulary, and settings out of range.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    _check_prompts(model, prompts)
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens must not be negative (got {max_new_tokens})")

    def sample(logits: Tensor) -> Tensor:
        return sample_token(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

    return _steps(model, prompts, max_new_tokens, eos_token_id, sample)


@torch.inference_mode()
def _steps(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_id: int | None,
    sample: Callable[[Tensor], Tensor],
) -> Iterator[list[int | None]]:
    lengths = [len(prompt) for prompt in prompts]  # what each row holds, its newest token included
    active = [True] * len(prompts)
    cache = model.new_cache(len(prompts), min(model.context_length, max(lengths) + max_new_tokens))
    newest_B = torch.empty(0)
    with evaluation_mode(model):
        for step in range(max_new_tokens):
            if step == 0:
                logits_BV = _prefill(model, prompts, cache)
            else:
                logits_BV = _extend(model, newest_B, lengths, active, cache)
            newest_B = sample(logits_BV)
            tokens = newest_B.tolist()
            yield [token if going else None for token, going in zip(tokens, active, strict=True)]
            for row, token in enumerate(tokens):
                lengths[row] += active[row]
                active[row] &= token != eos_token_id and lengths[row] < model.context_length
            if not any(active):
                return


def _prefill(model: TransformerLM, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Run the prompts, padded on the right, and return the logits (B, V) after each one's last token."""
    longest = max(len(prompt) for prompt in prompts)
    device = model.token_embeddings.weight.device
    ids_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    features_BTD = model.hidden_states(ids_BT, cache=cache)
    last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return model.logits(features_BTD[torch.arange(len(prompts), device=device), last_B])


def _extend(model: TransformerLM, newest_B: Tensor, lengths: list[int], active: list[bool], cache: KVCache) -> Tensor:
    """Run each row's newest token, which is at position `lengths[row] - 1`; return the logits (B, V).

    Finished rows ride along, at any position before the end: nobody reads what comes out of them.
    """
    live = {length for length, going in zip(lengths, active, strict=True) if going}
    cache.length = max(live) - 1
    positions_B1 = None  # one length, one position: no mask is needed
    if len(live) > 1:
        positions_B1 = torch.tensor(lengths, device=newest_B.device).clamp(max=max(live)).unsqueeze(1) - 1
    return model(newest_B.unsqueeze(1), positions_B1, cache)[:, -1]


def _check_prompts(model: TransformerLM, prompts: Sequence[Sequence[int]]) -> None:
    if not prompts:
        raise ConfigError("no prompt given; to start from nothing, give one of the end-of-text id")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(f"prompt {row} is empty; to start from nothing, give the end-of-text id")
        if len(prompt) >= model.context_length:
            raise ConfigError(
                f"prompt {row} has {len(prompt)} tokens and the model's context {model.context_length}, "
                f"which must hold a new token too; shorten the prompt to {model.context_length - 1} or fewer"
            )
        if min(prompt) < 0 or max(prompt) >= model.vocab_size:
            raise ConfigError(
                f"prompt {row} has ids from {min(prompt)} to {max(prompt)}, but the model's vocabulary ends "
                f"at {model.vocab_size - 1}; encode the prompt with the tokenizer the model was trained with"
            )
