"""Read a checkpoint for export: its weights, its tokenizer, and the architecture that fits.

All checks of the checkpoint are done here, before any file is written.
"""

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
from transformerlm.interop.weight_files import require_range
from transformerlm.models.build import state_shapes
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.dtypes import dtype_name, parse_dtype
from transformerlm.utils.errors import CheckpointError, InteropError


class Architecture(NamedTuple):
    """The names of a model architecture in other projects."""

    huggingface: str
    """The class in transformers."""
    model_type: str
    """`model_type` in `config.json`."""
    gguf: str
    """`general.architecture` in a GGUF file."""


LLAMA = Architecture("LlamaForCausalLM", "llama", "llama")
MISTRAL = Architecture("MistralForCausalLM", "mistral", "llama")
QWEN2 = Architecture("Qwen2ForCausalLM", "qwen2", "qwen2")
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "qwen3")


class Written(NamedTuple):
    """Summary of an export."""

    path: Path
    format: str
    dtype: str
    architecture: str
    parameters: int
    num_bytes: int
    notes: tuple[str, ...]
    """Notes for the user, one sentence each."""


@dataclass(frozen=True)
class Source:
    """A model to export, with the checkpoint's weights on the CPU."""

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
        """Number of values in all weights."""
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def unused_ids(self) -> range:
        """The model's ids beyond the tokenizer's: a vocabulary may be padded to a round number."""
        return range(self.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size, self.vocab_size)

    def in_halves(self, name: str) -> Tensor:
        """Return our weight `name` in Hugging Face's rotary layout; a new tensor if the layout differs."""
        weight = self.weights[name]
        return pairs_to_halves(weight, self.d_head) if is_rotated(name) else weight

    def require_same_logits(self, hparams: ModelHparams, written: Weights, *, vectors: torch.dtype) -> None:
        """Raise `InteropError` unless the written settings and weights give this model's logits in the reference.

        `vectors` is the type in which norms and biases were written. Memory: a copy of the weights as float32.
        """
        rounded = {
            name: weight.to(vectors if weight.ndim < 2 else self.dtype).float() for name, weight in self.weights.items()
        }
        expected = probe_logits(self.hparams, rounded)
        require_same_logits(expected, family_logits(hparams, written), architecture=self.architecture.huggingface)

    def written(self, path: Path, format: str, notes: tuple[str, ...]) -> Written:
        """Return the summary of an export of this model to `path`, a file or a folder."""
        files = path.iterdir() if path.is_dir() else [path]
        num_bytes = sum(file.stat().st_size for file in files)
        type_name = dtype_name(self.dtype)
        return Written(path, format, type_name, self.architecture.huggingface, self.num_parameters, num_bytes, notes)


def read_source(checkpoint: Path, dtype: str) -> Source:
    """Read a checkpoint folder, or the newest checkpoint of a run folder, for export with weights of type `dtype`.

    Memory: the weights, plus their file while it is read. Raises `CheckpointError` if the checkpoint is missing or
    damaged, `InteropError` for a model that no architecture of the Llama family can express or weights out of the range
    of `dtype`, `ConfigError` for an unknown type.
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
            "they are not from the same checkpoint"
        )
    return source


def choose_architecture(hparams: ModelHparams) -> Architecture:
    """Return the architecture of the Llama family that computes the same as our model with these settings.

    Llama is the basic one. Qwen2 adds biases to queries, keys and values, Qwen3 adds norms to queries and keys. Mistral
    computes the same as Llama, but libraries do not require its width to be divisible by the number of heads. Raises
    `InteropError` if none fits.
    """
    if hparams.qk_norm and hparams.qkv_bias:
        raise InteropError(
            "no architecture has both qk_norm (Qwen3) and qkv_bias (Qwen2): this model cannot be exported"
        )
    divides = hparams.d_model % hparams.num_heads == 0
    if hparams.qkv_bias and not (divides and hparams.head_size in (None, hparams.d_model // hparams.num_heads)):
        raise InteropError(
            f"Qwen2, the architecture with qkv_bias, has heads of size d_model / num_heads, not {hparams.head_size}: "
            "this model cannot be exported"
        )
    if hparams.qk_norm or hparams.qkv_bias:
        return QWEN3 if hparams.qk_norm else QWEN2
    return LLAMA if divides else MISTRAL


def _check_weights(source: Source) -> None:
    """Check that names and shapes are the model's, and that the values fit in the type of the export."""
    expected = state_shapes(source.hparams)
    for name in sorted(expected.keys() | source.weights.keys()):
        theirs, ours = expected.get(name), source.weights.get(name)
        if theirs is None or ours is None or theirs != ours.shape:
            raise CheckpointError(
                f"{source.checkpoint}: the weight {name} does not match the checkpoint's config.toml; "
                "its files are not from the same checkpoint"
            )
        require_range(
            f"the weight {name}",
            ours,
            source.dtype,
            not_finite="export an earlier checkpoint",
            too_large="export with --dtype bfloat16 or float32",
        )
    require_family(source.hparams, {huggingface_name(name): weight.shape for name, weight in source.weights.items()})
