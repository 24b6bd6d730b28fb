"""Exported folders, loaded by transformers: the same logits, the same greedy text, the same tokens."""

import errno
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from transformerlm.checkpoint.integrity import FolderWriter
from transformerlm.hparams import ModelHparams, SamplingHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.interop.gguf_export import export_gguf
from transformerlm.interop.huggingface_export import export_huggingface
from transformerlm.interop.source import Written, choose_architecture, read_source
from transformerlm.models import Linear, SwiGLU, TransformerLM
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import CheckpointError, ConfigError, DataError, InteropError

CLASSES = {
    "LlamaForCausalLM": {"head_size", "tie_embeddings", "num_kv_heads", "rope_scaling"},
    "Qwen2ForCausalLM": {"qkv_bias"},
    "Qwen3ForCausalLM": {"qk_norm"},
    "MistralForCausalLM": {"num_heads"},
}
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x2FFFF), max_size=40)
"""Characters that every library's Unicode has."""

ModelBuilder = Callable[..., TransformerLM]
Saver = Callable[..., Path]


@pytest.fixture
def exported(random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path) -> Callable[..., tuple[Written, Any]]:
    """Exports the random model of some settings; returns what was written, and our model."""

    def export(dtype: str = "float32", **settings: Any) -> tuple[Written, TransformerLM]:
        model = random_model(**settings)
        run = save_checkpoint(model, **settings)
        return export_huggingface(read_source(run, dtype), tmp_path / "out"), model

    return export


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def some_ids() -> torch.Tensor:
    return torch.randint(320, (2, 48), generator=torch.Generator().manual_seed(1))


def test_logits_and_greedy_text_are_those_of_transformers(
    settings: dict[str, Any], exported: Callable[..., tuple[Written, TransformerLM]], tmp_path: Path
) -> None:
    written, model = exported(**settings)
    peer = AutoModelForCausalLM.from_pretrained(written.path, local_files_only=True)
    assert type(peer).__name__ == written.architecture
    assert peer.config.max_position_embeddings == 48
    with torch.no_grad():
        logits, theirs = model(some_ids()), peer(some_ids()).logits
    assert logits.std() > 0.3
    torch.testing.assert_close(theirs, logits, atol=1e-5, rtol=1e-5)

    predictor = Predictor.from_checkpoint(tmp_path / "run", device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(written.path, local_files_only=True)
    for prompt in ("The fox", "café 你好"):
        [completion] = predictor.complete([prompt], SamplingHparams(temperature=0, max_new_tokens=20))
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = peer.generate(**inputs, max_new_tokens=20, do_sample=False)[0].tolist()
        assert ids == [*completion.prompt_ids, *completion.token_ids]


def test_each_kind_of_model_has_its_class(settings: dict[str, Any]) -> None:
    hparams = ModelHparams(vocab_size=320, **{"d_model": 32, "num_heads": 4, **settings})
    expected = [name for name, marks in CLASSES.items() if marks & settings.keys()] or ["LlamaForCausalLM"]
    assert choose_architecture(hparams).huggingface == expected[-1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "no architecture has both qk_norm .Qwen3. and qkv_bias .Qwen2."),
        ({"qkv_bias": True, "head_size": 12}, "Qwen2.*has heads of size d_model / num_heads, not 12"),
        ({"qkv_bias": True, "num_heads": 3, "head_size": 12}, "Qwen2.*has heads of size d_model / num_heads, not 12"),
    ],
)
def test_what_no_architecture_has_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InteropError, match=reason):
        choose_architecture(ModelHparams(vocab_size=320, **{"d_model": 32, "num_heads": 4, **settings}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits_are_ours_rounded(dtype: str, exported: Callable[..., tuple[Written, TransformerLM]]) -> None:
    written, model = exported(dtype, num_kv_heads=2)
    number_type = getattr(torch, dtype)
    stored = load_file(written.path / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {number_type}
    assert torch.equal(stored["model.embed_tokens.weight"], model.token_embeddings.weight.to(number_type))
    assert AutoModelForCausalLM.from_pretrained(written.path).dtype == number_type
    wide = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32)
    rounded = model.to(number_type).to(torch.float32)
    with torch.no_grad():  # the weights are the same numbers, so that float32's tolerance holds
        torch.testing.assert_close(wide(some_ids()).logits, rounded(some_ids()), atol=1e-5, rtol=1e-5)


def test_the_numbers_of_transformers_4_and_of_vllm_stand_beside_those_of_5(
    exported: Callable[..., tuple[Written, TransformerLM]],
) -> None:
    settings = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_context": 16}
    written, _ = exported("bfloat16", rope_scaling="llama3", rope_factor=4.0, **settings)
    config = json.loads((written.path / "config.json").read_bytes())
    assert config["rope_theta"] == config["rope_parameters"].pop("rope_theta") == 500.0
    assert config["rope_scaling"] == config["rope_parameters"]
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["eos_token_id"]) == (319, 319)
    read = AutoConfig.from_pretrained(written.path)
    assert read.rope_parameters["original_max_position_embeddings"] == 16


def test_the_tokenizer_gives_the_same_ids(
    exported: Callable[..., tuple[Written, TransformerLM]], tokenizer: Tokenizer, documents: list[str]
) -> None:
    written, _ = exported()
    theirs = AutoTokenizer.from_pretrained(written.path)
    assert (theirs.eos_token, theirs.model_max_length, theirs.bos_token) == (END_OF_TEXT, 48, None)
    text = END_OF_TEXT.join(documents)
    assert theirs(text).input_ids == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text

    @given(ASSIGNED)
    @examples(max_examples=50, suppress_health_check=list(HealthCheck))
    def same_for(text: str) -> None:
        assert theirs(text).input_ids == tokenizer.encode(text)

    same_for()


def test_the_tokenizer_gives_the_same_ids_for_the_sample_texts(
    exported: Callable[..., tuple[Written, TransformerLM]], tokenizer: Tokenizer, sample_texts: list[str]
) -> None:
    written, _ = exported()
    theirs = AutoTokenizer.from_pretrained(written.path).backend_tokenizer
    found = theirs.encode_batch_fast(sample_texts)  # without the places of tokens in the text, which take time
    assert [item.ids for item in found] == [tokenizer.encode(text) for text in sample_texts]


def test_a_token_that_begins_texts_has_its_role(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    vocab = {byte: bytes([byte]) for byte in range(256)}
    special = ["<|begin|>", "<|end|>"]
    Tokenizer(vocab, [], special, beginning_of_text="<|begin|>", end_of_text="<|end|>").save(tmp_path / "tokenizer")
    run = save_checkpoint(random_model(), tokenizer=tmp_path / "tokenizer")
    written = export_huggingface(read_source(run, "float32"), tmp_path / "out")
    config = AutoConfig.from_pretrained(written.path)
    assert (config.bos_token_id, config.eos_token_id) == (256, 257)
    theirs = AutoTokenizer.from_pretrained(written.path)
    assert theirs("ab").input_ids == Predictor.from_checkpoint(run, device="cpu").encode_prompt("ab") == [256, 97, 98]


def test_more_ids_than_tokens(random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path) -> None:
    run = save_checkpoint(random_model(vocab_size=384), vocab_size=384)
    written = export_huggingface(read_source(run, "float32"), tmp_path / "out")
    assert written.notes == ("the model has 64 more ids than the tokenizer; they have no text",)
    assert AutoModelForCausalLM.from_pretrained(written.path).config.vocab_size == 384
    assert AutoTokenizer.from_pretrained(written.path).decode([65, 383]) == "A"


def test_fewer_ids_than_tokens(random_model: ModelBuilder, save_checkpoint: Saver) -> None:
    run = save_checkpoint(random_model(vocab_size=319), vocab_size=319)
    with pytest.raises(CheckpointError, match="the tokenizer has 320 ids, the model only 319"):
        read_source(run, "float32")


def test_a_checkpoint_without_tokenizer(random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path) -> None:
    run = save_checkpoint(random_model(), tokenizer=None)
    written = export_huggingface(read_source(run, "float32"), tmp_path / "out")
    assert "has no tokenizer, so the folder has none" in written.notes[0]
    assert names_below(written.path) == ["config.json", "generation_config.json", "model.safetensors"]
    assert AutoModelForCausalLM.from_pretrained(written.path).config.eos_token_id is None


@pytest.mark.parametrize(
    ("value", "dtype", "problem"),
    [
        (
            65_520.0,
            "float16",
            "layers.0.attn.q_proj.weight has numbers up to 6.55e.04, too large for float16.*bfloat16",
        ),
        (float("nan"), "float32", "layers.0.attn.q_proj.weight holds numbers that are not finite"),
        (float("-inf"), "bfloat16", "layers.0.attn.q_proj.weight holds numbers that are not finite"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    value: float, dtype: str, problem: str, random_model: ModelBuilder, save_checkpoint: Saver
) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("layers.0.attn.q_proj.weight")[3, 5] = value
    run = save_checkpoint(model)
    with pytest.raises(InteropError, match=problem):
        read_source(run, dtype)


def test_float16_holds_what_rounds_to_its_largest(random_model: ModelBuilder, save_checkpoint: Saver) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("layers.0.attn.q_proj.weight")[3, 5] = -65_519.0
    assert read_source(save_checkpoint(model), "float16").dtype == torch.float16


def test_weights_of_another_model_are_refused(random_model: ModelBuilder, save_checkpoint: Saver) -> None:
    run = save_checkpoint(random_model(num_layers=1), fits=False)
    with pytest.raises(
        CheckpointError, match=r"the weight layers\.1\.attn\.k_proj\.weight does not match .*config\.toml"
    ):
        read_source(run, "float32")


def test_nothing_is_overwritten(exported: Callable[..., tuple[Written, TransformerLM]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is nothing
    written, _ = exported()
    before = {name: (written.path / name).stat().st_mtime_ns for name in names_below(written.path)}
    source = read_source(tmp_path / "run", "float16")
    with pytest.raises(ConfigError, match="out: already exists, and is not overwritten"):
        export_huggingface(source, written.path)
    assert before == {name: (written.path / name).stat().st_mtime_ns for name in names_below(written.path)}
    inside = source.checkpoint / "exports" / "hf"
    with pytest.raises(ConfigError, match="is inside the checkpoint"):
        export_huggingface(source, inside)
    assert not inside.parent.exists()


def test_a_full_disk_leaves_nothing(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(save_checkpoint(random_model()), "float32")
    write = FolderWriter.write

    def fill_the_disk(writer: FolderWriter, name: str, pieces: Iterable[Any]) -> None:
        if name == "config.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, name, pieces)

    monkeypatch.setattr(FolderWriter, "write", fill_the_disk)
    before = names_below(tmp_path)
    with pytest.raises(DataError, match=r"out needs [\d.]+ MB and cannot be written: No space left on device"):
        export_huggingface(source, tmp_path / "out")
    assert names_below(tmp_path) == before


def test_a_place_that_cannot_be_written_to(random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path) -> None:
    source = read_source(save_checkpoint(random_model()), "float32")
    (tmp_path / "file").write_text("here", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out: cannot be created: .*/file is not a folder; choose another --out"):
        export_huggingface(source, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "here"


def test_a_damaged_or_missing_checkpoint_is_named(
    random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path
) -> None:
    run = save_checkpoint(random_model())
    weights = run / "checkpoints" / "step_00000007" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        read_source(run, "float32")
    with pytest.raises(CheckpointError, match="there is no such folder; transformerlm-train makes checkpoints"):
        read_source(tmp_path / "nowhere", "float32")


def _gelu_gate(layer: SwiGLU, x: torch.Tensor) -> torch.Tensor:
    return layer.w2(torch.nn.functional.gelu(layer.w1(x)) * layer.w3(x))


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_changed_block_is_not_exported(
    format: str, random_model: ModelBuilder, save_checkpoint: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SwiGLU, "forward", _gelu_gate)  # when the model is trained, too
    folder = save_checkpoint(random_model())
    export = export_gguf if format == "gguf" else export_huggingface
    with pytest.raises(InteropError, match=r"not a LlamaForCausalLM: with the same weights its logits differ by"):
        export(read_source(folder, "float32"), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_layer_that_the_family_has_not_is_not_exported(
    save_checkpoint: Saver, random_model: ModelBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ungated(torch.nn.Module):
        def __init__(self, d_model: int, d_ff: int, device: Any = None, dtype: Any = None) -> None:
            super().__init__()
            self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
            self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w2(torch.nn.functional.gelu(self.w1(x)))

    monkeypatch.setattr("transformerlm.models.transformer.SwiGLU", Ungated)
    folder = save_checkpoint(random_model())
    with pytest.raises(InteropError, match=r"mlp\.up_proj\.weight is absent, and \(48, 32\) in the family"):
        read_source(folder, "float32")
