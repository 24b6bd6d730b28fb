"""The configuration of `transformerlm-bench-infer`."""

from collections.abc import Iterator

from pydantic import Field

from config.schemas import Config, ExecutionSection
from transformerlm.hparams import Integers, ModelHparams, PathSetting, Problem, Seed


class BenchInferSection(ExecutionSection):
    """The measurement."""

    checkpoint: PathSetting | None = Field(
        default=None,
        description="Checkpoint or run folder (unset: the shape of [model] with random weights).",
        json_schema_extra={"flag": "--checkpoint"},
    )
    batch_sizes: Integers = Field(default=(1, 8), min_length=1, description="Prompts decoded together; one row each.")
    prompt_tokens: int = Field(default=64, gt=0, description="Tokens of each prompt.")
    new_tokens: int = Field(
        default=64, gt=1, description="Tokens after it: the first ends the prefill, each other one is a decode step."
    )
    uncached_tokens: int = Field(
        default=8, ge=0, description="Tokens generated without a cache too, for comparison (0: none)."
    )
    compiled: bool = Field(
        default=False, description="Measure faster steps too: compiled, with int8 weights, with both (minutes more)."
    )
    peers: bool = Field(default=False, description="Measure transformers' generate too, on the same weights.")
    valid: PathSetting | None = Field(
        default=None, description="Token file to report bits per byte on, with int8 weights too."
    )
    temperature: float = Field(default=0.8, ge=0, description="Of the sampling; 0 takes the most likely token.")
    top_p: float = Field(default=0.95, ge=0, le=1, description="Of the sampling; 1 leaves the filter out.")
    warmup: int = Field(default=2, ge=0, description="Runs before the measurement.")
    repeats: int = Field(default=7, gt=0, description="Measured runs.")
    seed: Seed = Field(default=0, description="Seed of the prompts and of random weights.")

    def problems(self) -> Iterator[Problem]:
        if self.uncached_tokens > self.new_tokens:
            yield Problem("uncached_tokens", f"must not exceed new_tokens = {self.new_tokens}", self.uncached_tokens)


class BenchInferConfig(Config):
    """Measure prefill and decode latency."""

    benchmark: BenchInferSection = Field(default_factory=BenchInferSection)
    model: ModelHparams = Field(default_factory=lambda: ModelHparams(vocab_size=10_000))

    def problems(self) -> Iterator[Problem]:
        total = self.benchmark.prompt_tokens + self.benchmark.new_tokens
        if self.benchmark.checkpoint is None and total > self.model.context_length:
            yield Problem(
                "benchmark.new_tokens",
                f"prompt_tokens + new_tokens = {total} must fit in model.context_length = {self.model.context_length}",
                self.benchmark.new_tokens,
            )
        if self.benchmark.checkpoint is None and self.model.vocab_size is None:
            yield Problem("model.vocab_size", "must be given when there is no checkpoint", None)
