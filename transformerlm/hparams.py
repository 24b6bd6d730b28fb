"""Typed settings of the library's parts: one frozen class a table of a TOML file.

Defaults, meanings and limits live here and nowhere else. A part receives its own section
(`Trainer` a `TrainingHparams`, say), never a whole configuration. Single values are checked by
pydantic; what only shows in combination is listed by `problems`, so that a loader can report
everything that is wrong at once. Importing this module does not import torch.
"""

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

END_OF_TEXT = "<|endoftext|>"
"""The special token that ends a document, spelled as in GPT-2."""

PathSetting = Annotated[Path, Strict(False), BeforeValidator(lambda value: _not_empty(value))]
"""A path: TOML has only strings."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]

Strings = Annotated[tuple[str, ...], Strict(False)]
"""A list of strings: TOML arrays arrive as `list`."""

Integers = Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Strict(False)]
"""A list of positive integers."""

PathsSetting = Annotated[
    tuple[PathSetting, ...],
    Strict(False),
    BeforeValidator(lambda value: [value] if isinstance(value, (str, Path)) else value),
]
"""One path or a list of paths."""

PositiveNumbers = Annotated[tuple[Annotated[float, Strict(), Field(gt=0)], ...], Strict(False)]
"""A list of positive numbers."""

NamesSetting = Annotated[
    tuple[str, ...], Strict(False), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
"""One name or a list of names."""

RopeScaling = Literal["linear", "llama3"]

ROPE_SCALING_NUMBERS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_context"),
}
"""The numbers that each way of scaling rotary positions has."""

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would be the current folder
        raise ValueError("must not be empty")
    return value


class Problem(NamedTuple):
    """A combination of settings that cannot work: where, what to do, and the value found."""

    key: str
    message: str
    got: object
    hint: str = ""
    """What may have been meant, `; did you mean …?`."""


class Section(BaseModel):
    """A table of settings: immutable, typed strictly, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Yield what is impossible in combination; keys are the section's field names."""
        return iter(())


def swiglu_width(d_model: int) -> int:
    """Return 8/3 of `d_model`, rounded up to a multiple of 64 (Shazeer 2020, GLU Variants, section 3)."""
    return math.ceil(8 * d_model / 3 / 64) * 64


_MOST, _MOST_WIDE = 1 << 24, 1 << 20
_MOST_ANGLES = 1 << 28  # a gigabyte of cosines and sines
"""A model beyond these sizes is a mistake or an attack: files of others name them too, and they multiply."""


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

    def problems(self) -> Iterator[Problem]:
        if self.head_size is None:
            yield from self._division_problems()
        width = self.head_size or self.d_model // self.num_heads
        if self.context_length * width > _MOST_ANGLES:
            most = _MOST_ANGLES // max(1, width)
            yield Problem("context_length", f"must be at most {most} with heads of {width}", self.context_length)
        if self.num_heads % self.num_kv_heads:
            yield Problem("num_kv_heads", f"must divide num_heads = {self.num_heads}", self.num_kv_heads)
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
        if self.d_model % self.num_heads:
            yield Problem("d_model", f"must be divisible by num_heads = {self.num_heads}", self.d_model)
        elif (self.d_model // self.num_heads) % 2:
            yield Problem(
                "d_model",
                f"d_model / num_heads = {self.d_model // self.num_heads} must be even for rotary positions",
                self.d_model,
            )


class DataHparams(Section):
    """What to train on."""

    train: PathsSetting = Field(
        min_length=1, description="Token file to train on (made by transformerlm-make-data), or a list of them to mix."
    )
    train_weights: PositiveNumbers = Field(
        default=(),
        description="Share of the training windows that each file gets, in relation to the others "
        "(unset: as their numbers of tokens, so that all are read equally often).",
    )
    valid: PathSetting = Field(description="Token file to validate on.")
    tokenizer: PathSetting = Field(description="Folder of the tokenizer that made the token files.")
    mask_documents: bool = Field(
        default=False,
        description="Let tokens attend within their own document only, in training and validation; a document ends "
        "with the end-of-text id.",
    )

    def problems(self) -> Iterator[Problem]:
        if len(set(self.train)) < len(self.train):
            yield Problem("train", "must name different files", [str(path) for path in self.train])
        if self.train_weights and len(self.train_weights) != len(self.train):
            yield Problem(
                "train_weights", f"must be as many as the files of train, {len(self.train)}", list(self.train_weights)
            )


class OptimizerHparams(Section):
    """How weights are updated: AdamW (Loshchilov and Hutter 2019), or Muon (Jordan et al. 2024) beside it."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw | muon; muon updates the matrices of the blocks, AdamW then all else.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW: added to the denominator.")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon: decay of the momentum (Nesterov's).")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled weight decay, on matrices only.")
    embedding_lr_scale: float = Field(
        default=1.0,
        gt=0,
        description="Learning rate of the token embeddings and a tied output layer, as a multiple of the others'.",
    )


class ScheduleHparams(Section):
    """Learning rate: linear warm-up, then a cosine down to the minimum; or warm-up, stable, linear decay (wsd)."""

    name: Literal["cosine", "wsd"] = Field(
        default="cosine",
        description="cosine | wsd; a wsd run that has not begun to decay can be lengthened at no loss.",
    )
    max_learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate at the end of the warm-up.")
    min_learning_rate: float = Field(default=1e-4, ge=0, description="Learning rate at the end of cosine or decay.")
    warmup_iters: int = Field(default=100, ge=0, description="Steps of linear warm-up.")
    cosine_cycle_iters: int | None = Field(
        default=None, gt=0, description="cosine: step at which it ends (unset: training.steps)."
    )
    decay_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="wsd: share of training.steps, at the end, in which the rate falls (after the warm-up).",
    )

    def problems(self) -> Iterator[Problem]:
        if self.min_learning_rate > self.max_learning_rate:
            yield Problem(
                "min_learning_rate",
                f"must not exceed max_learning_rate = {self.max_learning_rate}",
                self.min_learning_rate,
            )
        if self.name != "cosine" and self.cosine_cycle_iters is not None:
            yield Problem(
                "cosine_cycle_iters",
                f"must be unset with the schedule {self.name}, which ends at training.steps",
                self.cosine_cycle_iters,
            )
        elif self.cosine_cycle_iters is not None and self.warmup_iters > self.cosine_cycle_iters:
            yield Problem(
                "warmup_iters",
                f"must not exceed cosine_cycle_iters = {self.cosine_cycle_iters}",
                self.warmup_iters,
            )

    def decay_iters(self, steps: int) -> int:
        """Return how many of `steps` steps a wsd schedule's decay takes: in a short run, what the warm-up leaves."""
        return min(round(self.decay_fraction * steps), steps - self.warmup_iters)


class TrainingHparams(Section):
    """The run: how long, how many sequences a step, where, and with what numbers."""

    steps: int = Field(default=1000, gt=0, description="Optimizer steps.")
    batch_size: int = Field(default=16, gt=0, description="Sequences an optimizer step.")
    micro_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="Sequences a forward pass; divides batch_size, gradients are accumulated (unset: batch_size).",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this L2 norm.")
    max_nonfinite_steps: int = Field(
        default=5, gt=0, description="Stop after this many steps in a row with a loss or gradient that is not finite."
    )
    seed: Seed = Field(default=0, description="Seed of the initial weights and of the order of the data.")
    device: DeviceName = Field(default="auto", description="auto | cpu | cuda | mps; auto takes the fastest present.")
    dtype: DtypeName = Field(
        default="auto",
        description="auto | float32 | bfloat16: numbers of the matrix products; weights stay float32. "
        "auto is bfloat16 where the processor multiplies it faster: on CUDA, on CPUs with AMX or avx512_bf16.",
    )
    compile: Literal["auto", True, False] = Field(
        default="auto",
        description="auto | true | false: let torch.compile make the step faster. auto does so where the run is long "
        "enough to win back the minute that it takes.",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute each block's activations again in the backward pass instead of keeping them: a third "
        "more arithmetic for much less memory.",
    )
    loss_chunk_rows: int = Field(
        default=0, ge=0, description="Rows of logits in memory at a time (0: what is fast on the device)."
    )
    threads: int = Field(default=0, ge=0, description="CPU threads (0: torch's own choice).")
    runs_dir: PathSetting = Field(default=Path("runs"), description="The run folder is runs_dir / logging.run_name.")
    init_from: PathSetting | None = Field(
        default=None,
        description="Checkpoint or run folder with whose weights a new run begins (unset: random ones). Its model is "
        "the run's: leave [model] out, or give a shorter context_length. Its tokenizer must be the data's.",
    )
    resume: Literal["auto", "never", "force"] = Field(
        default="auto",
        description="auto: continue from the newest whole checkpoint of the run folder. "
        "never: refuse a run folder that holds checkpoints. "
        "force: continue even if data, tokenizer, seed or batch size are not those of the checkpoint.",
    )

    def problems(self) -> Iterator[Problem]:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            yield Problem("micro_batch_size", f"must divide batch_size = {self.batch_size}", self.micro_batch_size)


class ParallelHparams(Section):
    """Several processes, started by torchrun: how they share the work."""

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="auto | ddp | fsdp: every process has the whole model, or a piece of every weight. auto is fsdp "
        "for a model whose weights, gradients and moments would fill half of a GPU, else ddp.",
    )
    timeout_seconds: int = Field(
        default=600, gt=0, description="Seconds that a process waits for the others before it gives up."
    )


class ValidationHparams(Section):
    """Loss on a fixed set of windows of the validation data."""

    interval: int = Field(default=250, gt=0, description="Steps between validations; one more follows the last step.")
    windows: int = Field(default=64, gt=0, description="Windows of context_length tokens, spread evenly over the file.")
    batch_size: int = Field(
        default=16, gt=0, description="Windows a forward pass (compiled: as many as in a forward pass of training)."
    )


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


class CheckpointHparams(Section):
    """When to save, and what to keep."""

    interval: int = Field(default=500, gt=0, description="Steps between checkpoints; one more follows the last step.")
    keep_last: int = Field(default=2, gt=0, description="Checkpoints kept, newest first; the best one is kept besides.")


LOGGING_BACKENDS = ("console", "wandb", "noop")


class LoggingHparams(Section):
    """Where records go."""

    backend: NamesSetting = Field(default=("console",), description="console | wandb | noop, or a list of them.")
    run_name: str = Field(default="run", min_length=1, description="Name of the run and of its folder.")
    architecture: str = Field(default="transformer", description="Free text, kept with the run.")
    dataset: str = Field(default="", description="Free text, kept with the run.")

    def problems(self) -> Iterator[Problem]:
        for name in self.backend:
            if name not in LOGGING_BACKENDS:
                nearest = difflib.get_close_matches(name, LOGGING_BACKENDS, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                yield Problem("backend", f"must be one of {', '.join(LOGGING_BACKENDS)}, or a list of them", name, hint)
        if Path(self.run_name).name != self.run_name or self.run_name.startswith("."):
            yield Problem("run_name", "must be a plain folder name", self.run_name)


class TrainLoggingHparams(LoggingHparams):
    """Where records go, and how often."""

    interval: int = Field(default=10, gt=0, description="Steps between records.")
    activation_norm_interval: int = Field(
        default=0, ge=0, description="Steps between records of the blocks' output norms (0: never)."
    )
    weight_norm_interval: int = Field(
        default=0, ge=0, description="Steps between records of the weights' norms (0: never)."
    )


class WandbHparams(Section):
    """Weights & Biases, used when logging.backend names wandb."""

    entity: str | None = Field(default=None, description="User or team (unset: the account's default).")
    project: str = Field(default="transformerlm", min_length=1, description="Project.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None, description="online | offline | disabled (unset: as WANDB_MODE says, else online)."
    )


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
