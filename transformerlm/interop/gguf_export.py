"""Export a checkpoint as one GGUF file, for llama.cpp and tools built on it.

Tensors and metadata are named as by llama.cpp's own converter, `convert_hf_to_gguf.py`. llama.cpp rotates adjacent
pairs for the architecture `llama`, which is our rotary layout, and halves for `qwen2` and `qwen3`, which is Hugging
Face's. Vectors (norms, biases) are float32 for any type of the matrices, as that converter writes them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transformerlm.interop.gguf_tokenizer import add_tokenizer
from transformerlm.interop.layout import huggingface_name, is_rotated, our_name, pairs_to_halves
from transformerlm.interop.output import check_output
from transformerlm.interop.source import LLAMA, Source, Written
from transformerlm.models.layers import rotary_frequencies
from transformerlm.models.rope_scaling import scaled_frequencies
from transformerlm.utils.errors import InteropError, MissingDependencyError
from transformerlm.utils.files import atomic_path

if TYPE_CHECKING:
    from gguf import GGUFWriter

_METADATA_BYTES = 10_000_000
"""Upper bound for the size of tokenizer and settings."""


def load_gguf() -> Any:
    """Return the package `gguf`; raise `MissingDependencyError` if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError("a GGUF file needs the extra `gguf`: uv sync --extra gguf") from None
    return gguf


def export_gguf(source: Source, out: Path) -> Written:
    """Write `source` as the file `out`, atomically; return a summary.

    Memory: the source's, and one weight. Raises `ConfigError` if `out` exists, `DataError` if the disk lacks space or a
    write fails, `InteropError` for a checkpoint without a tokenizer or with one that llama.cpp does not support, and
    `MissingDependencyError` without the package gguf.
    """
    gguf = load_gguf()
    check_output(out, source.checkpoint)
    if source.tokenizer is None:
        raise InteropError(
            f"{source.checkpoint}: holds no tokenizer, and a GGUF file needs one; export with --format hf instead"
        )
    writer = gguf.GGUFWriter(None, source.architecture.gguf)
    _add_settings(writer, source, name=out.stem)
    divisors = _add_rope_scaling(writer, source)
    notes = (*add_tokenizer(writer, source.tokenizer, source.vocab_size), *_add_more_ends(writer, source))
    names = _gguf_names(source)
    for name, theirs in names.items():
        writer.add_tensor_info(theirs, *_kind_of(source.weights[name], source.dtype))
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", *_kind_of(divisors, source.dtype))
    num_bytes = sum(weight.numel() * source.dtype.itemsize for weight in source.weights.values()) + _METADATA_BYTES
    with atomic_path(out, num_bytes) as path:
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in names:
                writer.write_tensor_data(_numbers(_weight(source, name), source.dtype))
            if divisors is not None:
                writer.write_tensor_data(_numbers(divisors, source.dtype))
        finally:
            writer.close()
        source.require_same_logits(source.hparams, _read_back(path, source, names), vectors=torch.float32)
    return source.written(out, "gguf", notes)


def _add_settings(writer: "GGUFWriter", source: Source, *, name: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    hparams = source.hparams
    file_types = {
        torch.float32: LlamaFileType.ALL_F32,
        torch.float16: LlamaFileType.MOSTLY_F16,
        torch.bfloat16: LlamaFileType.MOSTLY_BF16,
    }
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(file_types[source.dtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(hparams.context_length)
    writer.add_embedding_length(hparams.d_model)
    writer.add_block_count(hparams.num_layers)
    writer.add_feed_forward_length(hparams.d_ff)
    writer.add_head_count(hparams.num_heads)
    writer.add_head_count_kv(hparams.num_kv_heads)
    writer.add_key_length(source.d_head)
    writer.add_value_length(source.d_head)
    writer.add_layer_norm_rms_eps(hparams.norm_eps)
    writer.add_rope_dimension_count(source.d_head)
    writer.add_rope_freq_base(hparams.rope_theta)
    writer.add_vocab_size(source.vocab_size)


def _add_more_ends(writer: "GGUFWriter", source: Source) -> tuple[str, ...]:
    """Write one more end-of-text id beside the tokenizer's, the most the format can hold; return a note on the rest."""
    assert source.tokenizer is not None
    more = [token_id for token_id in source.eos_token_ids if token_id != source.tokenizer.eos_token_id]
    if more:
        writer.add_eot_token_id(more[0])
    dropped = ", ".join(map(str, more[1:]))
    return (f"a GGUF file names two ids that end a text; not named: {dropped}",) if dropped else ()


def _add_rope_scaling(writer: "GGUFWriter", source: Source) -> Tensor | None:
    """Write the scaling of rotary positions; return the divisors of the frequencies (K / 2,), if there are any."""
    from gguf import RopeScalingType

    hparams = source.hparams
    if hparams.rope_scaling == "linear":
        assert hparams.rope_factor is not None
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(hparams.rope_factor)
    if hparams.rope_scaling != "llama3":
        return None
    if source.architecture.gguf != LLAMA.gguf:
        raise InteropError(
            "llama.cpp supports the rotary scaling of Llama 3 only for Llama, and this is "
            f"{source.architecture.huggingface}; export with --format hf instead"
        )
    plain = rotary_frequencies(hparams.rope_theta, hparams.d_head)
    return plain / scaled_frequencies(plain, hparams)


def _gguf_names(source: Source) -> dict[str, str]:
    """Return the GGUF name of each of our weights, in the order of the file."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    [kind] = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == source.architecture.gguf]
    known = get_tensor_name_map(kind, source.hparams.num_layers)
    names = {}
    for name in source.weights:
        theirs = known.get_name(huggingface_name(name), try_suffixes=(".weight", ".bias"))
        assert theirs is not None, f"gguf has no name for {name}"
        names[name] = theirs
    return names


def _read_back(path: Path, source: Source, names: dict[str, str]) -> Callable[[str], Tensor]:
    """Return a function that reads weights of the file by Hugging Face's names and in its rotary layout."""
    from gguf import GGMLQuantizationType, GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if len(tensors) != len(names) + ("rope_freqs.weight" in tensors):
        raise InteropError(f"{path}: its tensors are not the {len(names)} weights of the model")

    def read(name: str) -> Tensor:
        ours = our_name(name)
        tensor = tensors[names[ours]]
        weight = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type == GGMLQuantizationType.BF16:
            weight = weight.view(torch.bfloat16)
        weight = weight.float().reshape(source.weights[ours].shape)
        rotates_pairs = source.architecture.gguf == LLAMA.gguf and is_rotated(ours)
        return pairs_to_halves(weight, source.d_head) if rotates_pairs else weight

    return read


def _weight(source: Source, name: str) -> Tensor:
    return source.weights[name] if source.architecture.gguf == LLAMA.gguf else source.in_halves(name)


def _kind_of(weight: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return shape, dtype in memory, bytes, and type in the file: the arguments of `GGUFWriter.add_tensor_info`."""
    import numpy as np
    from gguf import GGMLQuantizationType

    if weight.ndim < 2 or dtype == torch.float32:
        return weight.shape, np.dtype(np.float32), weight.numel() * 4, GGMLQuantizationType.F32
    if dtype == torch.float16:
        return weight.shape, np.dtype(np.float16), weight.numel() * 2, GGMLQuantizationType.F16
    return weight.shape, np.dtype(np.int16), weight.numel() * 2, GGMLQuantizationType.BF16


def _numbers(weight: Tensor, dtype: torch.dtype) -> Any:
    """Return the weight as an array of the dtype from `_kind_of`; bfloat16 as int16 bits, as numpy lacks the type."""
    converted = weight.to(torch.float32 if weight.ndim < 2 else dtype).contiguous()
    return (converted.view(torch.int16) if converted.dtype == torch.bfloat16 else converted).numpy()
