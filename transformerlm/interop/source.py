"""A checkpoint that is to be written in another format: its weights, its tokenizer, and the architecture that fits.

Everything that can be wrong with it is found here, before a file is written.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from transformerlm.checkpoint.fingerprint import probe_logits
from transformerlm.checkpoint.folder import TOKENIZER_FILES, Checkpoint
from transformerlm.hparams import ModelHparams
from transformerlm.interop.layout import huggingface_name, is_rotated, pairs_to_halves
from transformerlm.interop.reference import Weights, family_logits, require_family, require_same_logits
from transformerlm.models.build import state_shapes
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.dtypes import dtype_name, parse_dtype
from transformerlm.utils.errors import CheckpointError, InteropError


class Architecture(NamedTuple):
    """What other projects call a kind of model."""

    huggingface: str
    """The class of transformers."""
    model_type: str
    """`model_type` in `config.json`."""
    gguf: str
    """`general.architecture` in a GGUF file."""


LLAMA = Architecture("LlamaForCausalLM", "llama", "llama")
MISTRAL = Architecture("MistralForCausalLM", "mistral", "llama")
QWEN2 = Architecture("Qwen2ForCausalLM", "qwen2", "qwen2")
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "qwen3")


class Written(NamedTuple):
    """What an export wrote."""

    path: Path
    format: str
    dtype: str
    architecture: str
    parameters: int
    num_bytes: int
    notes: tuple[str, ...]
    """What people should know of it, a sentence each."""


@dataclass(frozen=True)
class Source:
    """A model that can be written in another format. The weights are those of the checkpoint, on the CPU."""

    checkpoint: Path
    hparams: ModelHparams
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None
    eos_token_ids: tuple[int, ...]
    """All ids that end a text, the tokenizer's first."""
    architecture: Architecture
    dtype: torch.dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        assert self.hparams.vocab_size is not None
        return self.hparams.vocab_size

    @property
    def d_head(self) -> int:
        """Size of an attention head."""
        return self.hparams.head_size or self.hparams.d_model // self.hparams.num_heads

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def unused_ids(self) -> range:
        """The ids of the model that the tokenizer does not have: a vocabulary may be padded to a round number."""
        return range(self.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size, self.vocab_size)

    def in_halves(self, name: str) -> Tensor:
        """Return our weight `name` in Hugging Face's rotary layout; a new tensor where that is another one."""
        weight = self.weights[name]
        return pairs_to_halves(weight, self.d_head) if is_rotated(name) else weight

    def require_same_logits(self, hparams: ModelHparams, written: Weights, *, vectors: torch.dtype) -> None:
        """Raise `InteropError` unless what was written is this model, settings and weights, as others compute it.

        `vectors` is the type in which norms and biases were written. Memory: the weights as float32.
        """
        rounded = {
            name: weight.to(vectors if weight.ndim < 2 else self.dtype).float() for name, weight in self.weights.items()
        }
        expected = probe_logits(self.hparams, rounded)
        require_same_logits(expected, family_logits(hparams, written), architecture=self.architecture.huggingface)

    def written(self, path: Path, format: str, notes: tuple[str, ...]) -> Written:
        """Return what is to be said of an export of this model to `path`, a file or a folder."""
        files = path.iterdir() if path.is_dir() else [path]
        num_bytes = sum(file.stat().st_size for file in files)
        type_name = dtype_name(self.dtype)
        return Written(path, format, type_name, self.architecture.huggingface, self.num_parameters, num_bytes, notes)


def read_source(checkpoint: Path, dtype: str) -> Source:
    """Read a checkpoint folder, or the newest checkpoint of a run folder, to be written as numbers of type `dtype`.

    Memory: the weights, and while they are read their file. Raises `CheckpointError` for one that is missing or
    damaged, `InteropError` for a model that no architecture of the Llama family expresses and for weights that
    `dtype` does not hold, `ConfigError` for an unknown type.
    """
    number_type = parse_dtype(dtype)
    opened = Checkpoint.open(checkpoint)
    hparams = opened.model_hparams()
    architecture = choose_architecture(hparams)
    tokenizer = None
    if all((opened.path / name).exists() for name in TOKENIZER_FILES):
        tokenizer = Tokenizer.load(opened.path)
    end = () if tokenizer is None or tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    eos_token_ids = tuple(dict.fromkeys((*end, *opened.eos_token_ids)))
    weights = opened.model_state()
    opened.require_same_code(weights)
    source = Source(opened.path, hparams, weights, tokenizer, eos_token_ids, architecture, number_type)
    _check_weights(source)
    if tokenizer is not None and tokenizer.vocab_size > source.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {source.vocab_size}; "
            "they are not of the same checkpoint"
        )
    return source


def choose_architecture(hparams: ModelHparams) -> Architecture:
    """Return the architecture of the Llama family that computes what a model of these settings does.

    Llama is the plain one. Qwen2 adds biases to queries, keys and values, Qwen3 norms to queries and keys. Mistral is
    Llama of which no library asks that the number of heads divide the width. Raises `InteropError` if none fits.
    """
    if hparams.qk_norm and hparams.qkv_bias:
        raise InteropError("no architecture has both qk_norm (Qwen3) and qkv_bias (Qwen2): such a model stays here")
    divides = hparams.d_model % hparams.num_heads == 0
    if hparams.qkv_bias and not (divides and hparams.head_size in (None, hparams.d_model // hparams.num_heads)):
        raise InteropError(
            f"Qwen2, the architecture with qkv_bias, has heads of size d_model / num_heads, not {hparams.head_size}: "
            "such a model stays here"
        )
    if hparams.qk_norm or hparams.qkv_bias:
        return QWEN3 if hparams.qk_norm else QWEN2
    return LLAMA if divides else MISTRAL


def _check_weights(source: Source) -> None:
    """Names and shapes are the model's, and the numbers have room in the type that they are to be written in."""
    expected = state_shapes(source.hparams)
    for name in sorted(expected.keys() | source.weights.keys()):
        theirs, ours = expected.get(name), source.weights.get(name)
        if theirs is None or ours is None or theirs != ours.shape:
            raise CheckpointError(
                f"{source.checkpoint}: the weight {name} is not as the checkpoint's config.toml says; "
                "its files are not of one checkpoint"
            )
        _check_range(name, ours, source.dtype)
    require_family(source.hparams, {huggingface_name(name): weight.shape for name, weight in source.weights.items()})


def _check_range(name: str, weight: Tensor, dtype: torch.dtype) -> None:
    largest = weight.abs().max()
    if not bool(torch.isfinite(largest.to(dtype))):
        value = largest.item()
        if not math.isfinite(value):
            raise InteropError(f"the weight {name} holds numbers that are not finite; export an earlier checkpoint")
        raise InteropError(
            f"the weight {name} has numbers up to {value:.3g}, too large for {dtype_name(dtype)}, which ends at "
            f"{torch.finfo(dtype).max:.5g}; export with --dtype bfloat16 or float32"
        )
