"""Training: data, optimizer, schedule, the run, processes, validation, checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from transformerlm.hparams.section import (
    DeviceName,
    DtypeName,
    PathSetting,
    PathsSetting,
    PositiveNumbers,
    Problem,
    Section,
    Seed,
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
        """Return the number of decay steps of a wsd schedule; in a short run, at most the steps after the warm-up."""
        return min(round(self.decay_fraction * steps), steps - self.warmup_iters)


class TrainingHparams(Section):
    """The run: its length, sequences per step, device, and number type."""

    steps: int = Field(default=1000, gt=0, description="Optimizer steps.")
    batch_size: int = Field(default=16, gt=0, description="Sequences an optimizer step.")
    micro_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="Sequences a forward pass; divides batch_size, gradients are accumulated (unset: batch_size).",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this L2 norm.")
    max_nonfinite_steps: int = Field(
        default=5,
        gt=0,
        description="Stop after this many steps in a row with a loss or gradient that is not finite, or without any "
        "gradient.",
    )
    seed: Seed = Field(default=0, description="Seed of the initial weights and of the order of the data.")
    device: DeviceName = Field(default="auto", description="auto | cpu | cuda | mps; auto takes the fastest present.")
    dtype: DtypeName = Field(
        default="auto",
        description="auto | float32 | bfloat16: numbers of the matrix products; weights stay float32. "
        "auto is bfloat16 where the processor multiplies it faster: on CUDA, on CPUs with AMX or avx512_bf16.",
    )
    fast: bool = Field(
        default=True,
        description="Use the faster versions of attention, loss and update; false runs the core as it reads, for "
        "study and checks.",
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
        "the run's: leave [model] out, or give a shorter context_length, or a longer one with other rotary "
        "settings. Its tokenizer must be the data's.",
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
        if not self.fast:
            if self.compile is True:
                yield Problem("compile", "needs fast = true", self.compile)
            if self.activation_checkpointing:
                yield Problem("activation_checkpointing", "needs fast = true", self.activation_checkpointing)
            if self.loss_chunk_rows:
                yield Problem("loss_chunk_rows", "needs fast = true", self.loss_chunk_rows)


class ParallelHparams(Section):
    """How several processes, started by torchrun, share the work."""

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


class CheckpointHparams(Section):
    """When to save, and what to keep."""

    interval: int = Field(default=500, gt=0, description="Steps between checkpoints; one more follows the last step.")
    keep_last: int = Field(default=2, gt=0, description="Checkpoints kept, newest first; the best one is kept besides.")
