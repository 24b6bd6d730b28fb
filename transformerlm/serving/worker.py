"""The one thread that owns the engine, and the streams of tokens that it feeds.

    event loop                                   the worker's thread
    submit(jobs) ──commands──────────────────▶   engine.submit
    async for drawn in stream ◀─call_soon────    engine.step, again and again while there is work
    cancel ──commands────────────────────────▶   engine.cancel: the slot is free for the next step

A stream holds no more than the tokens that its jobs may have, so that a client who does not read takes no more memory
than one who does. Which continuations are unfinished is counted on the event loop alone, and so is the queue's limit.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.engine import Engine, NewToken, Request
from transformerlm.inference.logprobs import TokenLogprobs
from transformerlm.inference.text import FinishReason, TextWriter
from transformerlm.serving.metrics import Metrics
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import ConfigError

_log = logging.getLogger("transformerlm.serving")


class Job(NamedTuple):
    """A continuation to make: choice number `choice` of a request."""

    choice: int
    prompt_ids: Sequence[int]
    sampling: SamplingHparams
    num_logprobs: int | None
    score_prompt: bool
    with_sampling_probs: bool = False


class Drawn(NamedTuple):
    """A token of choice number `choice`, the text that it brings to light, and what was held of it."""

    choice: int
    token_id: int
    text: str
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None
    prompt_logprobs: Sequence[TokenLogprobs]
    """Of the prompt's tokens but the first; with the first token of a job that asked for them."""


class GenerationError(Exception):
    """The engine could not go on; the message is for the client."""

    def __init__(self, message: str, *, status: int = 500, code: str = "generation_failed") -> None:
        """`status` is HTTP's."""
        super().__init__(message)
        self.status = status
        self.code = code


class BusyError(Exception):
    """The queue has no room for these jobs by now."""


def _engine_ended() -> GenerationError:
    return GenerationError("the engine has ended; the server must be restarted", status=503, code="engine_ended")


@final
class TokenStream:
    """The tokens of some jobs as they come; iterate once. Belongs to the event loop."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._queue: asyncio.Queue[Drawn | GenerationError] = asyncio.Queue()
        self.unfinished = len(jobs)
        self.tokens_left = sum(job.sampling.max_new_tokens for job in jobs)
        """Tokens still to be generated, at most."""

    def put(self, item: Drawn | GenerationError) -> None:
        """Add what comes next; an error ends the stream."""
        self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Drawn]:
        unfinished = self.unfinished
        while unfinished:
            item = await self._queue.get()
            if isinstance(item, GenerationError):
                raise item
            unfinished -= item.finish_reason is not None
            yield item


@dataclass(eq=False)
class _Running:
    """A job that the engine has; belongs to the worker's thread."""

    job: Job
    stream: TokenStream
    writer: TextWriter


class _Submit(NamedTuple):
    jobs: Sequence[Job]
    stream: TokenStream


class _Cancel(NamedTuple):
    stream: TokenStream


_Command = _Submit | _Cancel | None
_Event = tuple[TokenStream, Drawn | GenerationError | int]
"""A number is how many jobs were cancelled."""


@final
class Worker:
    """Decodes for many streams. All methods but `stop` are for the event loop that `start` was given."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, room: int, metrics: Metrics) -> None:
        """`room` is how many continuations may be unfinished at a time, in slots and queue together."""
        self._engine = engine
        self._tokenizer = tokenizer
        self.room = room
        self._metrics = metrics
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._running: dict[Request, _Running] = {}
        self._streams: set[TokenStream] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._step_seconds = 0.0  # smoothed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work; streams belong to `loop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step that it is in; may be called again, and from any thread."""
        self._stopping = True
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join(timeout=60)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is at work, or ready for it."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def num_unfinished(self) -> int:
        """How many continuations wait or run."""
        return sum(stream.unfinished for stream in self._streams)

    def seconds_to_drain(self) -> float:
        """Return about how long what waits and runs will take, at most; 0 before the first step was timed."""
        steps = sum(stream.tokens_left for stream in self._streams) / self._engine.max_batch_size
        return steps * self._step_seconds

    def submit(self, jobs: Sequence[Job]) -> TokenStream:
        """Return the stream of the jobs' tokens.

        Raises `BusyError` if there is no room for all of them, `GenerationError` if the thread has ended.
        """
        if not self.is_alive:
            raise _engine_ended()
        if self.num_unfinished + len(jobs) > self.room:
            raise BusyError
        stream = TokenStream(jobs)
        self._streams.add(stream)
        self._commands.put(_Submit(jobs, stream))
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """End what is unfinished of a stream; its slots are free after the step under way."""
        if stream in self._streams:
            self._commands.put(_Cancel(stream))

    def fail_all(self, error: GenerationError) -> None:
        """End all streams with an error."""
        for stream in tuple(self._streams):
            stream.put(error)
            self.cancel(stream)

    def _deliver(self, events: Sequence[_Event]) -> None:
        """Pass on what the thread has done; runs in the event loop."""
        for stream, event in events:
            if isinstance(event, int):
                stream.unfinished -= event
            else:
                stream.unfinished -= isinstance(event, Drawn) and event.finish_reason is not None
                stream.tokens_left -= isinstance(event, Drawn)
                stream.put(event)
            if not stream.unfinished:
                self._streams.discard(stream)

    # What follows runs in the worker's thread.

    def _work(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                if self._engine.has_work and not self._stopping:
                    self._send(self._step())
                self._metrics.observe_load(running=len(self._running), waiting=self._engine.num_waiting)
        finally:
            if not self._stopping:  # by a mistake in here
                _log.critical("the engine's thread has ended; restart the server", exc_info=True)
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self.fail_all, _engine_ended())

    def _obey(self) -> None:
        """Do what was commanded; with nothing else to do, wait for it."""
        wait = not self._engine.has_work
        while wait or not self._commands.empty():
            command = self._commands.get()
            wait = False
            if isinstance(command, _Submit):
                self._take_up(command)
            elif isinstance(command, _Cancel):
                self._drop(command.stream)

    def _take_up(self, command: _Submit) -> None:
        for job in command.jobs:
            try:
                request = self._engine.submit(
                    job.prompt_ids,
                    job.sampling,
                    num_logprobs=job.num_logprobs,
                    score_prompt=job.score_prompt,
                    with_sampling_probs=job.with_sampling_probs,
                )
            except ConfigError as error:
                self._send([(command.stream, GenerationError(str(error))), (command.stream, 1)])
                continue
            writer = TextWriter(self._tokenizer, job.sampling.stop)
            self._running[request] = _Running(job, command.stream, writer)

    def _drop(self, stream: TokenStream) -> None:
        requests = [request for request, running in self._running.items() if running.stream is stream]
        for request in requests:
            self._engine.cancel(request)
            del self._running[request]
        self._send([(stream, len(requests))])

    def _step(self) -> list[_Event]:
        start = time.perf_counter()
        try:
            tokens = self._engine.step()
        except (RuntimeError, IndexError, ValueError, MemoryError):  # of torch: no memory, say
            _log.exception("the engine failed; its requests end with an error")
            return self._fail()
        seconds = time.perf_counter() - start
        self._metrics.observe_step(len(tokens), seconds)
        self._step_seconds = 0.9 * self._step_seconds + 0.1 * seconds if self._step_seconds else seconds
        return [self._event(token) for token in tokens]

    def _event(self, token: NewToken) -> _Event:
        running = self._running[token.request]
        is_first = len(token.request.token_ids) == 1
        text = running.writer.take(token)
        reason = running.writer.finish_reason
        if reason is not None:
            self._engine.cancel(token.request)
            del self._running[token.request]
        prompt = token.request.prompt_logprobs if is_first else ()
        return running.stream, Drawn(running.job.choice, token.token_id, text, reason, token.logprobs, prompt)

    def _fail(self) -> list[_Event]:
        events: list[_Event] = []
        for request, running in self._running.items():
            self._engine.cancel(request)
            events += [(running.stream, GenerationError("the model could not go on")), (running.stream, 1)]
        self._running.clear()
        return events

    def _send(self, events: Sequence[_Event]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, events)
