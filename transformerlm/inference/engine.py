"""The engine: many requests decoded together, each coming and going when it likes.

That is continuous batching (Yu et al. 2022, Orca).

    waiting   r5 r6                            step 7: r1 ends, r5 takes its slot at once
    slot 0    r1 r1 r1 r1 r1 r1 r1 │ r5 r5 …   its prompt goes through the model in one piece ("prefill"),
    slot 1    r2 r2 r2 r2 ─────────┼ r6 r6 …   then each step adds a token
    slot 2    ── r3 r3 r3 r3 r3 r3 │ r3 r3 …

A slot is a row of the key-value cache, in which a token's place is its position: so rows of any length lie beside one
another, and what a slot held before is overwritten. New requests take the lowest free slot, and a step runs the rows up
to the highest one in use. What a request gets does not depend on its neighbours: see `batch_sampling` for the draws.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from transformerlm.fast.apply import use_fused_kernels
from transformerlm.fast.decoding import (
    CompiledStep,
    eager_is_slow_for_few_rows,
    for_few_rows,
    with_int8_weights,
)
from transformerlm.hparams import SamplingHparams
from transformerlm.inference.batch_sampling import BatchSampler, sampling_distribution
from transformerlm.inference.logprobs import TokenLogprobs, token_logprobs
from transformerlm.models import TransformerLM
from transformerlm.utils.errors import ConfigError

FinishReason = Literal["end_of_text", "max_new_tokens", "context_length", "cancelled"]

MAX_BATCH_SIZE = 32
_COMPILED_SIZES = (1, 8)
_IDLE = SamplingHparams(temperature=0)


@dataclass(eq=False)
class Request:
    """A prompt that is continued: the tokens so far, and why there are no more."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingHparams
    num_logprobs: int | None
    score_prompt: bool = False
    with_sampling_probs: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's tokens but the first, if they were asked for; there with the first new token."""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def length(self) -> int:
        """How many tokens prompt and continuation have."""
        return len(self.prompt_ids) + len(self.token_ids)


class NewToken(NamedTuple):
    """A token that a request has just got."""

    request: Request
    token_id: int
    finish_reason: FinishReason | None
    """Why it is the last one, if it is."""
    logprobs: TokenLogprobs | None
    """If the request asked for them."""


@final
class Engine:
    """Decodes requests, up to `max_batch_size` at a time. Not for several threads at once."""

    def __init__(
        self,
        model: TransformerLM,
        *,
        eos_token_ids: Collection[int] = (),
        max_batch_size: int = MAX_BATCH_SIZE,
        max_length: int | None = None,
        compiled: bool = False,
        int8: bool = False,
    ) -> None:
        """Put `model` into evaluation mode and take memory for `max_batch_size` rows of `max_length` tokens.

        Each of `eos_token_ids` ends a continuation. `max_length`, prompt and continuation together, is by default the
        model's context. With `int8` steps after the prompt use weights rounded to bytes; with `compiled` they are
        compiled, here, for batches of 1, 8 and `max_batch_size`. Raises `ConfigError` for a length above the context,
        if this machine cannot compile, and for int8 weights off the CPU that are not for compiled steps.
        """
        self._model = model.eval()
        use_fused_kernels(model)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._cache = model.new_cache(max_batch_size, max_length)
        self._device = model.token_embeddings.weight.device
        self._waiting: deque[Request] = deque()
        self._slots: list[Request | None] = [None] * max_batch_size
        self._newest_S = torch.zeros(max_batch_size, dtype=torch.int64, device=self._device)
        self._seen_BV: Tensor | None = None  # tokens in prompt and continuation, for those who are penalized for them
        self._sampler: BatchSampler | None = None  # of the rows in use; None when they have changed
        self._compiled_step: CompiledStep | None = None
        self._stepping_model = self._model
        if int8 and not compiled:
            if self._device.type != "cpu":
                raise ConfigError(f"int8 weights on {self._device.type} are for compiled steps only; ask for those too")
            self._stepping_model = with_int8_weights(self._model)
        elif not compiled and eager_is_slow_for_few_rows(self._model.token_embeddings.weight):
            self._stepping_model = for_few_rows(self._model)
        if compiled:
            self._compiled_step = CompiledStep(self._model, self._cache, batch_sizes=_COMPILED_SIZES, int8=int8)

    @property
    def max_batch_size(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    @property
    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._waiting) or any(self._slots)

    @property
    def num_waiting(self) -> int:
        """How many requests have no slot yet."""
        return len(self._waiting)

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingHparams,
        *,
        num_logprobs: int | None = None,
        score_prompt: bool = False,
        with_sampling_probs: bool = False,
    ) -> Request:
        """Let a prompt be continued from the next step on that has a slot for it.

        It is continued up to `sampling.max_new_tokens`, the end-of-text id (which is its last token then) or the end of
        the context. Stop strings are for those who see text: they `cancel`. With `num_logprobs` its tokens come with
        their log-probabilities, and those of so many of the most likely ones; with `score_prompt` those of the prompt
        are found too; with `with_sampling_probs` also the probability with which each of these was sampled.

        Raises `ConfigError` for an empty prompt, one that leaves no room for a new token, ids outside the vocabulary.
        """
        check_prompt(self._model, prompt_ids, max_length=self._cache.max_len)
        if num_logprobs is not None and not 0 <= num_logprobs <= self._model.vocab_size:
            raise ConfigError(f"num_logprobs must lie between 0 and {self._model.vocab_size} (got {num_logprobs})")
        if score_prompt and num_logprobs is None:
            raise ConfigError("score_prompt needs num_logprobs; 0 asks for no other tokens than those of the prompt")
        request = Request(tuple(prompt_ids), sampling, num_logprobs, score_prompt, with_sampling_probs)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Let a request have no more tokens; its slot is free for the next step. A finished one stays as it is."""
        if request.finish_reason is None:
            self._finish(request, "cancelled")

    def run(self) -> Iterator[NewToken]:
        """Yield tokens as they come until all requests are finished."""
        while self.has_work:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Give every request that has a slot one more token, and slots to requests that wait; return the tokens."""
        running = [slot for slot, request in enumerate(self._slots) if request is not None]
        admitted = self._admit()
        requests = {slot: request for slot, request in enumerate(self._slots) if request is not None}
        if not requests:
            return []
        logits_BV = self._logits(running, admitted, num_rows=max(requests) + 1)
        tokens = self._draw(logits_BV)
        logprobs = self._logprobs(logits_BV, tokens)
        new = []
        for slot, request in requests.items():
            self._take(request, tokens[slot])
            of_token = logprobs[slot] if request.num_logprobs is not None else None
            new.append(NewToken(request, tokens[slot], request.finish_reason, of_token))
        return new

    def _admit(self) -> list[int]:
        """Give free slots to requests that wait, the lowest first; return those slots."""
        admitted = []
        for slot, request in enumerate(self._slots):
            if request is None and self._waiting:
                self._slots[slot] = self._waiting.popleft()
                self._sampler = None
                admitted.append(slot)
        return admitted

    def _logits(self, running: list[int], admitted: list[int], *, num_rows: int) -> Tensor:
        """Return the logits (B, V) of the next token of each row; those of free slots mean nothing."""
        # First those that run: rows between them ride along, and what they leave in the cache is overwritten.
        extended_BV = self._extend(max(running) + 1) if running else None
        if extended_BV is not None and not admitted:
            return extended_BV
        prefilled = [(begin, self._prefill(begin, end)) for begin, end in stretches(admitted)]
        logits_BV = prefilled[0][1].new_zeros((num_rows, self._model.vocab_size))
        if extended_BV is not None:
            logits_BV[: len(extended_BV)] = extended_BV
        for begin, rows_BV in prefilled:
            logits_BV[begin : begin + len(rows_BV)] = rows_BV
        return logits_BV

    def _prefill(self, begin: int, end: int) -> Tensor:
        """Run the prompts of neighbouring slots, padded on the right; return the logits after each one's last token."""
        requests = [request for request in self._slots[begin:end] if request is not None]
        prompts = [request.prompt_ids for request in requests]
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self._device)
        features_BTD = self._model.hidden_states(ids_BT, cache=self._cache.rows(begin, end))
        for request, features_TD in zip(requests, features_BTD, strict=True):
            if request.score_prompt:
                ids, count = request.prompt_ids, request.num_logprobs or 0
                logits_TV = self._model.logits(features_TD[: len(ids) - 1])
                request.prompt_logprobs = token_logprobs(logits_TV, ids[1:], num_likeliest=count)
        last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._device)
        return self._model.logits(features_BTD[torch.arange(len(prompts), device=self._device), last_B])

    def _extend(self, num_rows: int) -> Tensor:
        """Run the newest token of the first rows; return the logits (B, V)."""
        if self._compiled_step is not None:
            size = self._compiled_step.batch_size(num_rows)
            lengths = [1 if request is None else request.length for request in self._slots[:size]]
            positions_B = torch.tensor(lengths, device=self._device) - 1
            return self._compiled_step(self._newest_S[:size], positions_B, max(lengths))[:num_rows]
        lengths = [0 if request is None else request.length for request in self._slots[:num_rows]]
        cache = self._cache.rows(0, num_rows)
        cache.length = max(lengths) - 1
        positions_B1 = None  # one length, one position: no mask is needed
        if len({*lengths} - {0}) > 1:
            positions_B1 = torch.tensor([[max(0, length - 1)] for length in lengths], device=self._device)
        return self._stepping_model(self._newest_S[:num_rows].unsqueeze(1), positions_B1, cache)[:, -1]

    def _draw(self, logits_BV: Tensor) -> list[int]:
        """Let each row draw its token."""
        num_rows = len(logits_BV)
        requests = self._slots[:num_rows]
        if self._sampler is None:
            self._sampler = BatchSampler([_IDLE if one is None else one.sampling for one in requests], self._device)
            if self._sampler.penalizes:
                self._seen_BV = self._find_seen(requests)
        numbers = [0 if request is None else len(request.token_ids) for request in requests]
        seen_BV = self._seen_BV if self._sampler.penalizes else None
        ids_B = self._sampler.draw(logits_BV, torch.tensor(numbers, device=self._device), seen_BV)
        self._newest_S[:num_rows] = ids_B
        if seen_BV is not None:
            seen_BV.scatter_(1, ids_B.unsqueeze(1), True)
        return ids_B.tolist()

    def _find_seen(self, requests: Sequence[Request | None]) -> Tensor:
        rows = [None if request is None else self._seen_before(request) for request in requests]
        nothing_V = torch.zeros(self._model.vocab_size, dtype=torch.bool, device=self._device)
        return torch.stack([nothing_V if row is None else row for row in rows])

    def _logprobs(self, logits_BV: Tensor, tokens: list[int]) -> list[TokenLogprobs]:
        """Return the log-probabilities of the tokens of each row; nothing if nobody asked."""
        wanted = [one.num_logprobs for one in self._slots if one is not None and one.num_logprobs is not None]
        if not wanted:
            return []
        found = token_logprobs(logits_BV, tokens, num_likeliest=max(wanted))
        logprobs = []
        for row, (one, request) in enumerate(zip(found, self._slots, strict=False)):
            if request is not None:
                one = one._replace(likeliest=one.likeliest[: request.num_logprobs])
                if request.with_sampling_probs:
                    ids = {tokens[row], *(token_id for token_id, _ in one.likeliest)}
                    probs_V = sampling_distribution(logits_BV[row], request.sampling, self._seen_before(request))
                    one = one._replace(sampling_probs={token_id: float(probs_V[token_id]) for token_id in ids})
            logprobs.append(one)
        return logprobs

    def _seen_before(self, request: Request) -> Tensor | None:
        """Return which tokens (V,) the repetition penalty of a request lowered in the step just taken."""
        if request.sampling.repetition_penalty == 1:
            return None
        seen_V = torch.zeros(self._model.vocab_size, dtype=torch.bool, device=self._device)
        seen_V[[*request.prompt_ids, *request.token_ids]] = True
        return seen_V

    def _take(self, request: Request, token_id: int) -> None:
        request.token_ids.append(token_id)
        if token_id in self._eos_token_ids:
            self._finish(request, "end_of_text")
        elif len(request.token_ids) >= request.sampling.max_new_tokens:
            self._finish(request, "max_new_tokens")
        elif request.length >= self._cache.max_len:
            self._finish(request, "context_length")

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if request in self._slots:
            self._slots[self._slots.index(request)] = None
            self._sampler = None
        else:
            self._waiting.remove(request)


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return begin and end of each stretch of neighbours among ascending numbers."""
    begins = [number for place, number in enumerate(numbers) if place == 0 or numbers[place - 1] != number - 1]
    ends = [
        number + 1
        for place, number in enumerate(numbers)
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1
    ]
    return list(zip(begins, ends, strict=True))


def check_prompt(model: TransformerLM, prompt_ids: Sequence[int], *, max_length: int) -> None:
    """Raise `ConfigError` for a prompt that cannot be continued within `max_length` tokens."""
    if not prompt_ids:
        raise ConfigError("the prompt is empty; to start from nothing, give the end-of-text id")
    if len(prompt_ids) >= max_length:
        raise ConfigError(
            f"the prompt has {len(prompt_ids):,} tokens, and {max_length:,} is the most for it and what follows; "
            f"shorten it to {max_length - 1:,} or fewer"
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= model.vocab_size:
        raise ConfigError(
            f"the prompt has ids from {min(prompt_ids)} to {max(prompt_ids)}, but the model's vocabulary ends "
            f"at {model.vocab_size - 1}; encode it with the tokenizer the model was trained with"
        )
