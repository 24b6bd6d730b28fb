"""Export a checkpoint as a Hugging Face folder, which transformers, vLLM and SGLang load without custom code.

    config.json               the architecture (see `source.choose_architecture`) and its sizes
    model.safetensors         the weights, under that architecture's names and in its rotary layout (see `layout`)
    generation_config.json    the ids that begin and end a text
    tokenizer.json, tokenizer_config.json

Rotary settings are written in two styles, `rope_parameters` for transformers 5, and `rope_theta` with `rope_scaling`
for version 4 and vLLM; the type of the weights as `dtype` and as `torch_dtype`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from transformerlm.checkpoint.integrity import FolderWriter
from transformerlm.checkpoint.tensor_file import safetensors_header, tensor_bytes
from transformerlm.hparams import ModelHparams
from transformerlm.interop.huggingface_config import read_model_config
from transformerlm.interop.layout import huggingface_name
from transformerlm.interop.output import check_output
from transformerlm.interop.reference import weight_shapes
from transformerlm.interop.source import LLAMA, QWEN2, QWEN3, Source, Written
from transformerlm.interop.tokenizer_json import write_tokenizer
from transformerlm.interop.weight_files import WeightFiles, require_tensors
from transformerlm.utils.dtypes import dtype_name
from transformerlm.utils.files import atomic_folder

_SMALL_FILES = 10_000_000
"""Upper bound for the size of tokenizer and settings."""


def export_huggingface(source: Source, out: Path) -> Written:
    """Write `source` as the folder `out`, atomically; return a summary.

    The written files are read back and their logits compared. Memory: the source's, and for a narrower type another
    copy of the weights as float32. Raises `ConfigError` if `out` exists, `DataError` if the disk lacks space or a write
    fails, `TokenizerError` for a tokenizer that `tokenizer.json` cannot express, and `InteropError` if the architecture
    computes other logits than this project's model.
    """
    check_output(out, source.checkpoint)
    names = {huggingface_name(name): name for name in source.weights}
    like = {
        theirs: torch.empty(source.weights[ours].shape, dtype=source.dtype, device="meta")
        for theirs, ours in names.items()
    }
    header, order = safetensors_header(like, {"format": "pt"})

    def pieces() -> Iterator[bytes | memoryview]:
        yield header
        for theirs in order:
            yield tensor_bytes(source.in_halves(names[theirs]).to(source.dtype))

    num_bytes = sum(weight.nbytes for weight in like.values()) + _SMALL_FILES
    with atomic_folder(out, num_bytes) as folder:
        writer = FolderWriter(folder)
        writer.write("model.safetensors", pieces())
        writer.write("config.json", [_json(model_config(source))])
        writer.write("generation_config.json", [_json(generation_config(source))])
        if source.tokenizer is not None:
            write_tokenizer(source.tokenizer, folder, context_length=source.hparams.context_length)
        _, hparams = read_model_config(folder)
        files = WeightFiles.open(folder)
        require_tensors(files, {name: torch.Size(shape) for name, shape in weight_shapes(hparams).items()})
        source.require_same_logits(hparams, lambda name: files.read(name).float(), vectors=source.dtype)
    return source.written(out, "hf", _notes(source))


def model_config(source: Source) -> dict[str, Any]:
    """Return the content of `config.json`."""
    hparams, kind = source.hparams, source.architecture
    scaling = _rope_scaling(hparams)
    config: dict[str, Any] = {
        "architectures": [kind.huggingface],
        "model_type": kind.model_type,
        "vocab_size": source.vocab_size,
        "hidden_size": hparams.d_model,
        "intermediate_size": hparams.d_ff,
        "num_hidden_layers": hparams.num_layers,
        "num_attention_heads": hparams.num_heads,
        "num_key_value_heads": hparams.num_kv_heads,
        "head_dim": source.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": hparams.context_length,
        "rms_norm_eps": hparams.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": hparams.rope_theta} | (scaling or {}),
        "rope_theta": hparams.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": hparams.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": begin_id(source),
        "eos_token_id": _end_ids(source),
        "pad_token_id": None,
        "dtype": dtype_name(source.dtype),
        "torch_dtype": dtype_name(source.dtype),
    }
    if kind in (QWEN2, QWEN3):
        config |= {"use_sliding_window": False, "max_window_layers": hparams.num_layers}
    config |= {"mlp_bias": False, "pretraining_tp": 1} if kind == LLAMA else {"sliding_window": None}
    return config


def _rope_scaling(hparams: ModelHparams) -> dict[str, Any] | None:
    if hparams.rope_scaling is None:
        return None
    numbers = {
        "factor": hparams.rope_factor,
        "low_freq_factor": hparams.rope_low_freq_factor,
        "high_freq_factor": hparams.rope_high_freq_factor,
        "original_max_position_embeddings": hparams.rope_original_context,
    }
    given = {name: number for name, number in numbers.items() if number is not None}
    return {"rope_type": hparams.rope_scaling, **given}


def generation_config(source: Source) -> dict[str, Any]:
    """Return the content of `generation_config.json`: special ids, no sampling settings."""
    padding = source.eos_token_ids[0] if source.eos_token_ids else None
    ids = {"bos_token_id": begin_id(source), "eos_token_id": _end_ids(source), "pad_token_id": padding}
    return {"_from_model_config": False} | {name: token_id for name, token_id in ids.items() if token_id is not None}


def begin_id(source: Source) -> int | None:
    """Return the id that begins a text: beginning-of-text, or without such a token end-of-text, as in GPT-2."""
    if source.tokenizer is None:
        return None
    begin = source.tokenizer.bos_token_id
    return source.tokenizer.eos_token_id if begin is None else begin


def _end_ids(source: Source) -> int | list[int] | None:
    ids = list(source.eos_token_ids)
    return ids if len(ids) > 1 else next(iter(ids), None)


def _notes(source: Source) -> tuple[str, ...]:
    notes = []
    if source.tokenizer is None:
        notes.append("the checkpoint has no tokenizer, so the folder has none: AutoTokenizer cannot load it")
    elif source.unused_ids:
        notes.append(f"the model has {len(source.unused_ids):,} more ids than the tokenizer; they have no text")
    if source.architecture == QWEN2 and source.tokenizer is not None:
        settings = source.tokenizer.settings
        if (settings.pattern, settings.normalization) != ("qwen2", "NFC"):
            notes.append(
                "AutoTokenizer loads every Qwen2 with the pre-tokenization of the original, not this tokenizer's; "
                "load it with PreTrainedTokenizerFast"
            )
    return tuple(notes)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
