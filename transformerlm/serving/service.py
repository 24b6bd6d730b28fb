"""From a request that is well-formed to an answer, whole or as a stream of events: the work behind /v1/completions."""

import asyncio
import contextlib
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, final

from transformerlm.inference.predictor import Predictor
from transformerlm.serving.completions import AnswerFrame, ChoiceWriter, Echo, joined_choice, usage
from transformerlm.serving.errors import ApiError
from transformerlm.serving.metrics import Metrics
from transformerlm.serving.protocol import (
    CompletionRequest,
    TextOrIds,
    TokenizeRequest,
    check_limits,
    check_model,
)
from transformerlm.serving.settings import LimitsHparams
from transformerlm.serving.worker import BusyError, GenerationError, Job, TokenStream, Worker
from transformerlm.tokenizer.tokenizer import AllowedSpecial
from transformerlm.utils.errors import ConfigError

_LONGEST_RETRY_AFTER = 60
"""Seconds; OpenAI's clients follow no longer advice."""


class _Prompt(NamedTuple):
    token_ids: list[int]
    num_added: int = 0
    """How many of the first ids stand for no text of the prompt: the beginning of text, or the end for an empty one."""


@final
class Generation:
    """A request at work: its tokens as they come, and who makes choices of them. Close it in the end."""

    def __init__(
        self, stream: TokenStream, worker: Worker, writers: Sequence[ChoiceWriter], prompt_tokens: int
    ) -> None:
        self._stream = stream
        self._worker = worker
        self._writers = writers
        self._prompt_tokens = prompt_tokens

    async def choices(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the choice of each chunk. Raises `GenerationError`."""
        async for drawn in self._stream:
            yield self._writers[drawn.choice].write(drawn)

    @property
    def usage(self) -> dict[str, int]:
        """The account of tokens so far."""
        return usage(self._prompt_tokens, sum(writer.num_tokens for writer in self._writers))

    def close(self) -> None:
        """Free the slots of what is unfinished."""
        self._worker.cancel(self._stream)


@final
class CompletionService:
    """Checks requests against model and limits, and answers them."""

    def __init__(
        self,
        predictor: Predictor,
        worker: Worker,
        *,
        name: str,
        limits: LimitsHparams,
        metrics: Metrics,
        special_tokens: bool = True,
    ) -> None:
        """`name` is what clients call the model; `special_tokens` says whether those written in a prompt are meant."""
        self._special_tokens = special_tokens
        self.name = name
        self._predictor = predictor
        self._worker = worker
        self._limits = limits
        self._metrics = metrics

    async def answer(self, request: CompletionRequest) -> dict[str, Any]:
        """Return the whole answer. Raises `ApiError`."""
        frame = AnswerFrame(self.name)
        chunks: dict[int, list[dict[str, Any]]] = {}
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                with contextlib.closing(await self._start(request)) as generation:
                    async for choice in self._timed(generation):
                        chunks.setdefault(choice["index"], []).append(choice)
        except (TimeoutError, GenerationError) as error:
            raise self.failure(error) from None
        # In another thread: with many log-probabilities it takes a while, in which others want to be answered.
        choices = await asyncio.to_thread(lambda: [joined_choice(chunks[index]) for index in sorted(chunks)])
        return frame.around(choices, usage=generation.usage)

    async def start_stream(self, request: CompletionRequest) -> "EventSource":
        """Return the events of a stream, of which none has come yet. Raises `ApiError`."""
        end = asyncio.get_running_loop().time() + self._limits.request_seconds
        try:
            async with asyncio.timeout_at(end):
                generation = await self._start(request)
        except TimeoutError as error:
            raise self.failure(error) from None
        return EventSource(self, request, generation, end)

    async def events(self, request: CompletionRequest, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """Yield the objects of a stream."""
        frame = AnswerFrame(self.name)
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        more = {"usage": None} if with_usage else {}
        async for choice in self._timed(generation):
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                yield frame.around([choice], **more)
        if with_usage:
            yield frame.around([], usage=generation.usage)

    def failure(self, error: TimeoutError | GenerationError) -> ApiError:
        """Return what a client is told when its request ends too early."""
        if isinstance(error, GenerationError):
            return ApiError(error.status, str(error), code=error.code)
        message = f"the request took longer than {self._limits.request_seconds:g} seconds"
        return ApiError(504, message, code="request_timeout")

    async def _timed(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        start: float | None = time.perf_counter()
        async for choice in generation.choices():
            if start is not None:
                self._metrics.observe_first_token(time.perf_counter() - start)
                start = None
            yield choice

    async def _start(self, request: CompletionRequest) -> Generation:
        check_model(request, self.name)
        check_limits(request, self._limits)
        if len(request.prompt) * request.num_choices > self._worker.room:
            param = "n" if request.num_choices > 1 else "prompt"
            message = f"{param}: asks for more than {self._worker.room} continuations at a time (prompts times n)"
            raise ApiError(400, message, param=param, code="limit_exceeded")
        prompts = [await self._read(prompt) for prompt in request.prompt]
        self._check_total(request, prompts)
        try:
            stream = self._worker.submit(self._jobs(request, prompts))
        except GenerationError as error:
            raise self.failure(error) from None
        except BusyError:
            seconds = max(self._limits.retry_after_seconds, math.ceil(self._worker.seconds_to_drain()))
            headers = {"Retry-After": str(min(seconds, _LONGEST_RETRY_AFTER))}
            raise ApiError(429, "the queue is full; try again later", code="queue_full", headers=headers) from None
        prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._metrics.observe_prompt(prompt_tokens)
        return Generation(stream, self._worker, self._writers(request, prompts), prompt_tokens)

    def _jobs(self, request: CompletionRequest, prompts: Sequence[_Prompt]) -> list[Job]:
        seed = secrets.randbelow(2**63) if request.seed is None else request.seed
        num_logprobs = request.logprobs
        if num_logprobs is not None:
            num_logprobs = min(num_logprobs, self._predictor.model.vocab_size)
        jobs = []
        for prompt in prompts:
            scored = bool(request.echo) and num_logprobs is not None and len(prompt.token_ids) > 1
            for _ in range(request.num_choices):
                sampling = request.sampling(seed + len(jobs))
                with_probs = bool(request.sampling_probs)
                jobs.append(Job(len(jobs), prompt.token_ids, sampling, num_logprobs, scored, with_probs))
        return jobs

    def _writers(self, request: CompletionRequest, prompts: Sequence[_Prompt]) -> list[ChoiceWriter]:
        tokenizer = self._predictor.tokenizer
        writers = []
        for prompt in prompts:
            echo = None
            if request.echo:
                # decoded rather than as it was sent, since the tokenizer may normalise it
                text = self._decode(prompt.token_ids[prompt.num_added :])
                echo = Echo(text, prompt.token_ids, prompt.num_added)
            for _ in range(request.num_choices):
                writers.append(
                    ChoiceWriter(
                        len(writers),
                        tokenizer,
                        echo=echo,
                        with_logprobs=request.logprobs is not None,
                        keeps_new=request.new_tokens > 0,
                        with_sampling_probs=bool(request.sampling_probs),
                    )
                )
        return writers

    async def _read(self, prompt: TextOrIds) -> _Prompt:
        """Return a prompt as ids. Raises `ApiError` (400) for one that does not fit."""
        if isinstance(prompt, str):
            try:
                # In another thread: a long text would hold up everybody else.
                ids = await asyncio.to_thread(self._encode, prompt)
            except ConfigError as error:
                raise ApiError(400, f"prompt: {error}", param="prompt", code="invalid_prompt") from None
            num_added = 1 if not prompt or self._predictor.tokenizer.bos_token_id is not None else 0
        else:
            ids, num_added = prompt, 0
        self._check_ids(ids)
        return _Prompt(ids, num_added)

    def _encode(self, prompt: str) -> list[int]:
        allowed: AllowedSpecial = "all" if self._special_tokens else frozenset()
        return self._predictor.encode_prompt(prompt, allowed_special=allowed)

    async def count_tokens(self, request: TokenizeRequest) -> dict[str, Any]:
        """Return how many tokens a prompt has, and which. Raises `ApiError` (400) for one that does not fit."""
        prompt = await self._read(request.prompt)
        return {
            "count": len(prompt.token_ids),
            "max_model_len": self._predictor.model.context_length,
            "tokens": prompt.token_ids,
        }

    def _check_ids(self, ids: Sequence[int]) -> None:
        model = self._predictor.model
        most = min(self._limits.prompt_tokens or model.context_length, model.context_length - 1)
        if len(ids) > most:
            message = f"prompt: has {len(ids):,} tokens, and at most {most:,} are allowed"
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            message = f"prompt: token ids must lie between 0 and {model.vocab_size - 1}"
            raise ApiError(400, message, param="prompt", code="invalid_prompt")

    def _check_total(self, request: CompletionRequest, prompts: Sequence[_Prompt]) -> None:
        context_length = self._predictor.model.context_length
        lengths = [min(len(prompt.token_ids) + request.new_tokens, context_length) for prompt in prompts]
        total, most = sum(lengths) * request.num_choices, self._limits.total_tokens
        if total > most:
            message = f"prompt: with max_tokens and n this asks for {total:,} tokens, and at most {most:,} are allowed"
            raise ApiError(400, message, param="prompt", code="limit_exceeded")

    def _decode(self, ids: Sequence[int]) -> str:
        size = self._predictor.tokenizer.vocab_size
        return self._predictor.tokenizer.decode([token_id for token_id in ids if token_id < size])


@final
class EventSource:
    """The server-sent events of one request."""

    def __init__(
        self, service: CompletionService, request: CompletionRequest, generation: Generation, end: float
    ) -> None:
        """`end` is when the event loop's clock says that the request has had its time."""
        self._service = service
        self._request = request
        self._generation = generation
        self._end = end

    async def send_to(self, send_bytes: Any) -> None:
        """Send all events by `send_bytes`, an async function; a failure is an event, too.

        Whatever happens, cancellation among it, the slots are free afterwards.
        """
        try:
            async with asyncio.timeout_at(self._end):
                async for event in self._service.events(self._request, self._generation):
                    await send_bytes(_event(event))
                await send_bytes(b"data: [DONE]\n\n")
        except (TimeoutError, GenerationError) as error:
            self._generation.close()
            await send_bytes(_event(self._service.failure(error).to_dict()))
        finally:
            self.close()

    def close(self) -> None:
        """Free the slots, as `send_to` does in the end."""
        self._generation.close()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n\n"
