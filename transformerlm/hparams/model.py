"""The model's shape."""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from transformerlm.hparams.section import Problem, Section

RopeScaling = Literal["linear", "llama3"]

ROPE_SCALING_NUMBERS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_context"),
}
"""The settings of each kind of rotary scaling."""


def swiglu_width(d_model: int) -> int:
    """Return 8/3 of `d_model`, rounded up to a multiple of 64 (Shazeer 2020, GLU Variants, section 3)."""
    return math.ceil(8 * d_model / 3 / 64) * 64


# A larger model is a mistake or an attack: sizes also come from untrusted files, and they multiply.
_MOST, _MOST_WIDE = 1 << 24, 1 << 20
_MOST_ANGLES = 1 << 28  # a gigabyte of cosines and sines


class ModelHparams(Section):
    """The shape of the Transformer."""

    vocab_size: int | None = Field(
        default=None, gt=0, le=_MOST, description="Vocabulary entries (unset: as many as the data's tokenizer has)."
    )
    context_length: int = Field(
        default=256, gt=0, le=_MOST, description="Longest sequence of tokens that the model sees."
    )
    d_model: int = Field(default=192, gt=0, le=_MOST_WIDE, description="Width of the residual stream.")
    num_layers: int = Field(default=4, gt=0, le=10_000, description="Number of Transformer blocks.")
    num_heads: int = Field(
        default=6, gt=0, le=_MOST_WIDE, description="Attention heads; divides d_model unless head_size is set."
    )
    num_kv_heads: int = Field(
        default_factory=lambda data: data["num_heads"],
        gt=0,
        le=_MOST_WIDE,
        description="Heads of keys and values, for grouped-query attention (unset: num_heads).",
    )
    d_ff: int = Field(
        default_factory=lambda data: swiglu_width(data["d_model"]),
        gt=0,
        le=_MOST_WIDE,
        description="Width of the feed-forward layer (unset: 8/3 of d_model, rounded up to a multiple of 64).",
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary position angles.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of RMSNorm.")
    tie_embeddings: bool = Field(default=False, description="Use the token embeddings as the output layer's weights.")
    qk_norm: bool = Field(default=False, description="Normalise queries and keys per head before the rotation.")
    qkv_bias: bool = Field(default=False, description="Add biases to queries, keys and values, as Qwen2 does.")
    head_size: int | None = Field(
        default=None,
        gt=0,
        le=_MOST_WIDE,
        multiple_of=2,
        description="Width of an attention head, even (unset: d_model / num_heads).",
    )
    rope_scaling: RopeScaling | None = Field(
        default=None,
        description="linear | llama3: slow the rotary positions by rope_factor, for contexts longer than those of the "
        "first training; all pairs, or those that turn seldom (unset: neither).",
    )
    rope_factor: float | None = Field(default=None, ge=1, description="linear, llama3: by what rotations are slowed.")
    rope_low_freq_factor: float | None = Field(
        default=None,
        gt=0,
        description="llama3: pairs that turn less often in rope_original_context are slowed fully.",
    )
    rope_high_freq_factor: float | None = Field(
        default=None, gt=0, description="llama3: pairs that turn more often in it are not slowed."
    )
    rope_original_context: int | None = Field(
        default=None, gt=0, le=_MOST, description="llama3: context, in tokens, of the first training."
    )

    @property
    def d_head(self) -> int:
        """Width of an attention head."""
        return self.head_size or self.d_model // self.num_heads

    def problems(self) -> Iterator[Problem]:
        if self.head_size is None:
            yield from self._division_problems()
        width = self.d_head
        if self.context_length * width > _MOST_ANGLES:
            most = _MOST_ANGLES // max(1, width)
            yield Problem("context_length", f"must be at most {most} with heads of {width}", self.context_length)
        if self.num_heads % self.num_kv_heads:
            divisors = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            yield Problem(
                "num_kv_heads",
                f"must divide num_heads = {self.num_heads}",
                self.num_kv_heads,
                f"; use one of {divisors}",
            )
        needed = () if self.rope_scaling is None else ROPE_SCALING_NUMBERS[self.rope_scaling]
        for name in ROPE_SCALING_NUMBERS["llama3"]:
            value = getattr(self, f"rope_{name}")
            if name in needed and value is None:
                yield Problem(f"rope_{name}", f"must be given with rope_scaling {self.rope_scaling}", value)
            if name not in needed and value is not None:
                yield Problem(f"rope_{name}", f"must be unset with rope_scaling {self.rope_scaling or 'unset'}", value)
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        if low is not None and high is not None and low >= high:
            yield Problem("rope_low_freq_factor", f"must be below rope_high_freq_factor = {high}", low)

    def _division_problems(self) -> Iterator[Problem]:
        d_head, rest = divmod(self.d_model, self.num_heads)
        if rest:
            hint = f"; try {(d_head + 1) * self.num_heads}"
            yield Problem("d_model", f"must be divisible by num_heads = {self.num_heads}", self.d_model, hint)
        elif d_head % 2:
            message = f"d_model / num_heads = {d_head} must be even for rotary positions"
            yield Problem("d_model", message, self.d_model, f"; try {(d_head + 1) * self.num_heads}")
