"""What the server counts, for Prometheus."""

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


@final
class Metrics:
    """Counters with a registry of their own, so that two servers in a process do not mix. For any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "transformerlm_requests", "HTTP requests answered.", ["status"], registry=self._registry
        )
        self._prompt_tokens = Counter("transformerlm_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._new_tokens = Counter("transformerlm_generated_tokens", "Tokens generated.", registry=self._registry)
        self._steps = Counter("transformerlm_engine_steps", "Steps of the engine.", registry=self._registry)
        self._waiting = Gauge(
            "transformerlm_queue_length", "Continuations that wait for a slot.", registry=self._registry
        )
        self._running = Gauge("transformerlm_running", "Continuations that have a slot.", registry=self._registry)
        self._first_token = Histogram(
            "transformerlm_time_to_first_token_seconds", "From a request's arrival to its first token.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "transformerlm_time_per_token_seconds", "From one token of a continuation to the next: a step.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def observe_request(self, status: int) -> None:
        """Count a request that was answered."""
        self._requests.labels(status=str(status)).inc()

    def observe_prompt(self, num_tokens: int) -> None:
        """Count a prompt that was accepted."""
        self._prompt_tokens.inc(num_tokens)

    def observe_first_token(self, seconds: float) -> None:
        """Count a request's first token."""
        self._first_token.observe(seconds)

    def observe_step(self, num_tokens: int, seconds: float) -> None:
        """Count a step that gave so many continuations a token each."""
        self._steps.inc()
        self._new_tokens.inc(num_tokens)
        self._per_token.observe(seconds)

    def observe_load(self, *, running: int, waiting: int) -> None:
        """Set how many continuations there are, waiting or not, and how many of them wait."""
        self._running.set(running - waiting)
        self._waiting.set(waiting)

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
