"""Settings for the use of a trained model: generation and evaluation."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from transformerlm.hparams.section import Problem, Section, Seed, Strings


class SamplingHparams(Section):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: int = Field(default=256, gt=0, description="Stop after this many tokens.")
    temperature: float = Field(default=0.8, ge=0, description="Divides the logits; 0 takes the most likely token.")
    top_k: int | None = Field(default=None, gt=0, description="Sample among the k most likely tokens (unset: all).")
    top_p: float = Field(
        default=0.95, ge=0, le=1, description="Sample among the fewest tokens whose probabilities reach p (1: all)."
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Leave out tokens less likely than this share of the most likely one's."
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="Above 1, tokens in the prompt or the text so far become less likely (1: off)."
    )
    seed: Seed = Field(default=0, description="Seed of the sampling.")
    stop: Strings = Field(default=(), description="Strings that end a text; they are not part of it.")

    def problems(self) -> Iterator[Problem]:
        if "" in self.stop:
            yield Problem("stop", "must not hold an empty string", list(self.stop))


class EvaluationHparams(Section):
    """How held-out text is scored: sliding windows over each document, or over one stream of all of them."""

    windows: Literal["documents", "stream"] = Field(
        default="documents",
        description="documents | stream: windows over each document by itself, which begins after the end-of-text "
        "token, or over all of them as one stream, as in training.",
    )
    context_length: int | None = Field(
        default=None, gt=0, description="Tokens of a window (unset: the model's context, which is the most)."
    )
    stride: int | None = Field(
        default=None,
        gt=0,
        description="Tokens from one window to the next. A token is scored with at least context_length - stride "
        "tokens before it, where there are as many: a smaller stride gives more context and takes longer (unset: half "
        "of context_length, which takes twice the time of windows that only touch).",
    )
    batch_size: int = Field(default=16, gt=0, description="Windows a forward pass; changes nothing of the result.")

    def problems(self) -> Iterator[Problem]:
        if self.stride is not None and self.context_length is not None and self.stride > self.context_length:
            yield Problem(
                "stride",
                f"must not exceed context_length = {self.context_length}, or tokens between windows are left out",
                self.stride,
            )
