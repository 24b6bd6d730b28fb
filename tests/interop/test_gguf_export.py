"""Exported GGUF files, read back by gguf and by transformers."""

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("gguf", reason="needs gguf: uv sync --group peers")
pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")

import gguf
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # from_pretrained asks for accelerate first

from transformerlm.interop.gguf_export import export_gguf, load_gguf
from transformerlm.interop.gguf_tokenizer import entries, pre_tokenizer_name
from transformerlm.interop.huggingface_export import export_huggingface
from transformerlm.interop.source import Written, read_source
from transformerlm.models import TransformerLM
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, gpt2_bytes_to_unicode
from transformerlm.utils.errors import ConfigError, DataError, InteropError, MissingDependencyError

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.": "attn_", "mlp.": "ffn_",
    "o_proj": "output", "_proj": "",
}  # fmt: skip
"""From Hugging Face's names to llama.cpp's, replaced in this order."""
KINDS = ["plain", "grouped", "tied", "head_size", "qkv_bias", "qk_norm", "qk_norm_head_size", "linear", "llama3"]
"""Models of the fixture `settings` of which transformers reads GGUF files."""

BYTES = {byte: bytes([byte]) for byte in range(256)}

ModelBuilder = Callable[..., TransformerLM]
Saver = Callable[..., Path]


@pytest.fixture
def exported(random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path) -> Callable[..., tuple[Written, Any]]:
    """Exports the random model of some settings; returns what was written, and our model."""

    def export(dtype: str = "float32", **settings: Any) -> tuple[Written, TransformerLM]:
        model = random_model(**settings)
        run = save_checkpoint(model, **settings)
        return export_gguf(read_source(run, dtype), tmp_path / "out.gguf"), model

    return export


def read_back(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return metadata and tensors of a file."""
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        numbers = torch.from_numpy(np.array(tensor.data))
        if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
            numbers = numbers.view(torch.bfloat16)
        tensors[tensor.name] = numbers.reshape(shape)
    return values, tensors


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def test_every_tensor_reads_back(
    settings: dict[str, Any], random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    model = random_model(**settings)
    source = read_source(save_checkpoint(model, **settings), "float32")
    if source.architecture.gguf != "llama" and "rope_scaling" in settings:
        with pytest.raises(
            InteropError, match="the rotary scaling of Llama 3 only for Llama, and this is Qwen2ForCausalLM"
        ):
            export_gguf(source, tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()
        return
    _, tensors = read_back(export_gguf(source, tmp_path / "out.gguf").path)
    folder = export_huggingface(source, tmp_path / "hf").path  # whose layout the logits have shown to be right
    expected = {gguf_name(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    divisors = tensors.pop("rope_freqs.weight", None)
    assert (divisors is not None) == (settings.get("rope_scaling") == "llama3")
    assert tensors.keys() == expected.keys()
    if source.architecture.gguf == "llama":  # which is rotated in pairs, as ours: nothing is permuted
        for layer, block in enumerate(model.layers):
            expected[f"blk.{layer}.attn_q.weight"] = block.get_parameter("attn.q_proj.weight").detach()
            expected[f"blk.{layer}.attn_k.weight"] = block.get_parameter("attn.k_proj.weight").detach()
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []


@pytest.mark.parametrize("settings", KINDS, indirect=True)
def test_transformers_reads_the_same_model(
    settings: dict[str, Any], random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    model = random_model(**settings)
    source = read_source(save_checkpoint(model, **settings), "float32")
    path = export_gguf(source, tmp_path / "out.gguf").path
    config = AutoConfig.for_model(**load_gguf_checkpoint(path)["config"])
    if settings.keys() & {"qk_norm", "rope_scaling"}:  # of which transformers reads neither head size nor scaling
        config = AutoConfig.from_pretrained(export_huggingface(source, tmp_path / "hf").path)
    peer = AutoModelForCausalLM.from_config(config).eval()
    missing, unknown = peer.load_state_dict(
        load_gguf_checkpoint(path, return_tensors=True, model_to_load=peer)["tensors"], strict=False
    )
    assert (missing, unknown) == (["lm_head.weight"] if "tie_embeddings" in settings else [], [])
    ids = torch.randint(320, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(peer(ids).logits, model(ids), atol=1e-5, rtol=1e-5)


def test_metadata(exported: Callable[..., tuple[Written, TransformerLM]], tokenizer: Tokenizer) -> None:
    written, _ = exported("float16", qk_norm=True, head_size=12, num_kv_heads=2)
    values, _ = read_back(written.path)
    expected = {
        "general.architecture": "qwen3", "general.type": "model", "general.name": "out", "general.file_type": 1,
        "general.quantization_version": 2, "qwen3.context_length": 48, "qwen3.embedding_length": 32,
        "qwen3.block_count": 2, "qwen3.feed_forward_length": 48, "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 12, "qwen3.attention.value_length": 12,
        "qwen3.rope.dimension_count": 12, "qwen3.rope.freq_base": 500.0, "qwen3.vocab_size": 320,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 319,
        "tokenizer.ggml.bos_token_id": 319, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected
    assert values["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-4)
    byte_of = {character: byte for byte, character in gpt2_bytes_to_unicode().items()}
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert (tokens[319], types[319]) == (END_OF_TEXT, gguf.TokenType.CONTROL)
    assert [bytes(byte_of[sign] for sign in token) for token in tokens[:319]] == list(tokenizer.vocab.values())[:319]
    assert types[:319] == [gguf.TokenType.NORMAL] * 319
    pairs = [
        tuple(bytes(byte_of[sign] for sign in part) for part in merge.split(" "))
        for merge in values["tokenizer.ggml.merges"]
    ]
    assert pairs == list(tokenizer.merges)


@pytest.mark.parametrize(("dtype", "file_type"), [("float32", 0), ("float16", 1), ("bfloat16", 32)])
def test_matrices_have_the_type_and_vectors_are_float32(
    dtype: str, file_type: int, exported: Callable[..., tuple[Written, TransformerLM]]
) -> None:
    written, model = exported(dtype, qkv_bias=True)
    values, tensors = read_back(written.path)
    number_type = getattr(torch, dtype)
    assert values["general.file_type"] == file_type
    assert {name: t.dtype for name, t in tensors.items() if t.ndim == 1 and t.dtype != torch.float32} == {}
    assert {name: t.dtype for name, t in tensors.items() if t.ndim == 2 and t.dtype != number_type} == {}
    down = model.get_parameter("layers.1.ffn.w2.weight").detach()
    assert torch.equal(tensors["blk.1.ffn_down.weight"], down.to(number_type))


def test_rotary_scaling(exported: Callable[..., tuple[Written, TransformerLM]], tmp_path: Path) -> None:
    values, _ = read_back(exported(rope_scaling="linear", rope_factor=3.0)[0].path)
    assert (values["llama.rope.scaling.type"], values["llama.rope.scaling.factor"]) == ("linear", 3.0)
    (tmp_path / "run").rename(tmp_path / "linear")
    (tmp_path / "out.gguf").unlink()
    slowed = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_context": 64}
    written, _ = exported(rope_scaling="llama3", rope_factor=8.0, **slowed)
    values, tensors = read_back(written.path)
    assert "llama.rope.scaling.type" not in values
    # By hand, for base 500 and four pairs. In 64 tokens they turn 10.2, 2.15, 0.46 and 0.10 times: the first often
    # enough, the last two seldom, and of the second s = (2.154 - 1) / 3 = 0.3847 is kept: 1 / (0.6153 / 8 + 0.3847).
    torch.testing.assert_close(tensors["rope_freqs.weight"], torch.tensor([1.0, 2.1664, 8.0, 8.0]), atol=1e-3, rtol=0)


def test_ids_without_a_token_are_unused(exported: Callable[..., tuple[Written, TransformerLM]]) -> None:
    written, _ = exported(vocab_size=323)
    assert written.notes == ("the model has 3 more ids than the tokenizer; they are unused",)
    values, _ = read_back(written.path)
    assert values["tokenizer.ggml.tokens"][319:] == [END_OF_TEXT, "[PAD320]", "[PAD321]", "[PAD322]"]
    assert values["tokenizer.ggml.token_type"][320:] == [gguf.TokenType.UNUSED] * 3
    taken = Tokenizer(BYTES, [], ["[PAD257]"])
    assert entries(taken, 258)[0][256:] == ["[PAD257]", "[[PAD257]]"]


def test_a_special_token_that_reads_like_another_is_refused() -> None:
    with pytest.raises(InteropError, match="special token 'ĠA' reads like an ordinary token in a GGUF file"):
        entries(Tokenizer(BYTES | {256: b" A"}, [(b" ", b"A")], ["ĠA"]), 258)


@pytest.mark.parametrize(
    ("pattern", "whole_words", "name"),
    [
        ("gpt2", False, "gpt-2"), ("gpt2_digits", False, "smollm"), ("llama3", True, "llama-bpe"),
        ("llama3", False, "dbrx"), ("qwen2", False, "qwen2"), ("o200k", False, "gpt-4o"), ("tekken", True, "tekken"),
    ],
)  # fmt: skip
def test_patterns_have_the_names_of_llama_cpp(pattern: str, whole_words: bool, name: str) -> None:
    assert pre_tokenizer_name(Tokenizer(BYTES, [], pattern=pattern, whole_words=whole_words)) == name


@pytest.mark.parametrize(
    ("pattern", "whole_words"), [("cl100k", False), ("cl100k", True), ("gpt2", True), ("qwen2", True)]
)
def test_patterns_that_llama_cpp_has_not_are_refused(pattern: str, whole_words: bool) -> None:
    with pytest.raises(
        InteropError, match=f"llama.cpp does not support this tokenizer's pattern {pattern}.*--format hf"
    ):
        pre_tokenizer_name(Tokenizer(BYTES, [], pattern=pattern, whole_words=whole_words))


def test_what_llama_cpp_does_otherwise_is_said(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    Tokenizer(BYTES, [], ["<s>"], pattern="qwen2", normalization="NFC", beginning_of_text="<s>").save(tmp_path / "t")
    run = save_checkpoint(random_model(vocab_size=257), vocab_size=257, tokenizer=tmp_path / "t")
    written = export_gguf(read_source(run, "float32"), tmp_path / "out.gguf")
    assert "no end-of-text token; llama.cpp will use the id 11" in written.notes[0]
    assert "does not normalise text to NFC" in written.notes[1]
    values, _ = read_back(written.path)
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.add_bos_token"]) == (256, True)
    assert "tokenizer.ggml.eos_token_id" not in values


def test_a_checkpoint_without_tokenizer_is_refused(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    run = save_checkpoint(random_model(), tokenizer=None)
    with pytest.raises(InteropError, match="holds no tokenizer, and a GGUF file needs one; export with --format hf"):
        export_gguf(read_source(run, "float32"), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_nothing_is_overwritten(exported: Callable[..., tuple[Written, TransformerLM]], tmp_path: Path) -> None:
    written, _ = exported()
    before = written.path.read_bytes()
    source = read_source(tmp_path / "run", "float16")
    with pytest.raises(ConfigError, match=r"out\.gguf: already exists, and is not overwritten"):
        export_gguf(source, written.path)
    assert written.path.read_bytes() == before
    with pytest.raises(ConfigError, match="is inside the checkpoint"):
        export_gguf(source, source.checkpoint / "out.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.gguf: already exists"):
        export_gguf(source, tmp_path / "folder.gguf")
    with pytest.raises(ConfigError, match="has no name of its own"):
        export_gguf(source, Path())


def test_a_full_disk_leaves_nothing(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(save_checkpoint(random_model()), "float32")
    write = gguf.GGUFWriter.write_tensor_data

    def fill_the_disk(writer: gguf.GGUFWriter, numbers: np.ndarray) -> None:
        if numbers.ndim == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, numbers)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fill_the_disk)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"out\.gguf needs [\d.]+ MB and cannot be written: No space left on device"):
        export_gguf(source, tmp_path / "out.gguf")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="uv sync --extra gguf"):
        load_gguf()
