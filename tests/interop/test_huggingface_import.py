"""Models that transformers has made and saved: imported they give its logits, or the reason why they cannot be."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.import_model import main as import_main
from transformerlm.checkpoint.folder import Checkpoint, load_model_state
from transformerlm.interop.huggingface_config import read_model_config
from transformerlm.interop.huggingface_export import export_huggingface
from transformerlm.interop.huggingface_import import read_huggingface, write_checkpoint
from transformerlm.interop.source import read_source
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.utils.errors import ConfigError, InteropError

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")

VOCAB, CONTEXT = 60, 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}}),
    "smollm": ("Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}),
    "wide heads": ("Llama", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": CONTEXT}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
}

Save = Callable[..., tuple[torch.nn.Module, Path]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Makes a random model of `MODELS` and saves it; returns it and the folder, which tests leave as it is."""
    made: dict[str, tuple[torch.nn.Module, Path]] = {}

    def save(kind: str = "llama2") -> tuple[torch.nn.Module, Path]:
        if kind not in made:
            name, changes = MODELS[kind]
            torch.manual_seed(0)
            model = getattr(transformers, f"{name}ForCausalLM")(
                getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
            ).eval()
            for parameter in model.parameters():  # gains and biases too: as they begin, they would not be missed
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
            folder = tmp_path_factory.mktemp("saved")
            model.save_pretrained(folder)
            made[kind] = model, folder
        return made[kind]

    return save


@pytest.fixture
def copy(saved: Save, tmp_path: Path) -> Callable[..., Path]:
    """Copies a saved model's folder, with changes of `config.json` (None: the key is removed)."""

    def make(kind: str = "llama2", **changes: Any) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(saved(kind)[1], folder)
        change_config(folder, **changes)
        return folder

    return make


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def remove_keys(folder: Path, *keys: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in keys}), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def imported(folder: Path, out: Path, *, dtype: str = "float32", **options: Any) -> TransformerLM:
    written = write_checkpoint(read_huggingface(folder, tokenizer="none", **options), out, dtype)
    checkpoint = Checkpoint.open(written.path)
    assert '"logits": null' not in (checkpoint.path / "fingerprint.json").read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.require_same_code()
    model = build_model(checkpoint.model_hparams())
    load_model_state(model, checkpoint.model_state())
    return model.eval()


def ids(length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(model: TransformerLM, peer: torch.nn.Module) -> None:
    logits = model(ids(model.context_length))
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, peer(ids(model.context_length)).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_transformers(kind: str, saved: Save, tmp_path: Path) -> None:
    peer, folder = saved(kind)
    assert_same_logits(imported(folder, tmp_path / "ours"), peer)


@pytest.mark.parametrize("kind", MODELS)
def test_exported_again_it_is_the_same_model(kind: str, saved: Save, tmp_path: Path) -> None:
    peer, folder = saved(kind)
    write_checkpoint(read_huggingface(folder, tokenizer="none"), tmp_path / "ours", "float32")
    export_huggingface(read_source(tmp_path / "ours", "float32"), tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    for name, weight in peer.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    with torch.no_grad():
        torch.testing.assert_close(again(ids()).logits, peer(ids()).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["llama2", "llama3", "linear", "smollm"])
def test_rotary_settings_of_transformers_4_mean_the_same(kind: str, saved: Save, copy: Callable[..., Path]) -> None:
    folder = copy(kind)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config["rope_parameters"]
    theta, kind_key = rope.pop("rope_theta"), "type" if kind == "linear" else "rope_type"
    scaling = {kind_key: rope.pop("rope_type"), **rope}
    remove_keys(folder, "rope_parameters", "head_dim")
    change_config(folder, rope_theta=theta, rope_scaling=None if scaling[kind_key] == "default" else scaling)
    assert read_model_config(folder) == read_model_config(saved(kind)[1])


def test_what_old_files_leave_out_has_its_old_meaning(copy: Callable[..., Path]) -> None:
    folder = copy("llama2")
    expected = read_model_config(folder)
    remove_keys(folder, "architectures", "num_key_value_heads", "rope_parameters", "tie_word_embeddings", "head_dim")
    assert read_model_config(folder) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_stored_exactly(dtype: torch.dtype, copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy("qwen2")
    change_weights(folder, lambda weights: weights.update({k: v.to(dtype) for k, v in weights.items()}))
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same_logits(imported(folder, tmp_path / "ours"), peer)
    narrow = imported(folder, tmp_path / "narrow", dtype=str(dtype).removeprefix("torch."))
    assert_same_logits(narrow, peer)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("ours", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]


def test_numbers_that_do_not_fit_the_type_are_refused_and_nothing_is_left(
    copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder, name = copy("llama2"), "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: weights[name].view(-1)[3].fill_(1e6))
    with pytest.raises(InteropError, match=rf"{name} has numbers up to 1e\+06, too large for float16"):
        imported(folder, tmp_path / "ours", dtype="float16")
    change_weights(folder, lambda weights: weights[name].view(-1)[3].fill_(torch.nan))
    with pytest.raises(InteropError, match=f"{name} holds numbers that are not finite"):
        imported(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_shards_are_read_by_their_index(saved: Save, tmp_path: Path) -> None:
    peer, _ = saved("llama3")
    peer.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert_same_logits(imported(tmp_path / "shards", tmp_path / "ours"), peer)


def test_files_may_be_links_as_in_the_cache_of_the_hub(saved: Save, tmp_path: Path) -> None:
    peer, folder = saved("llama2")
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert_same_logits(imported(tmp_path / "snapshot", tmp_path / "ours"), peer)


def test_frequencies_in_old_files_are_ignored(saved: Save, copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy("llama2")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(4)}))
    assert_same_logits(imported(folder, tmp_path / "ours"), saved("llama2")[0])


def test_an_output_matrix_that_cannot_be_the_table_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy("smollm")
    for wrong, message in (
        (torch.zeros(3, 4), "lm_head.weight, which do not fit config.json"),
        (torch.zeros(VOCAB, 32, dtype=torch.int8), "lm_head.weight, which do not fit config.json"),
    ):
        change_weights(folder, lambda weights, wrong=wrong: weights.update({"lm_head.weight": wrong}))
        with pytest.raises(InteropError, match=message):
            read_huggingface(folder, tokenizer="none")


def test_an_output_matrix_may_be_the_table_in_another_type(copy: Callable[..., Path]) -> None:
    folder = copy("smollm")
    name = "model.embed_tokens.weight"
    change_weights(folder, lambda weights: weights.update({name: weights[name].bfloat16().float()}))
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": weights[name].bfloat16()}))
    assert read_huggingface(folder, tokenizer="none").hparams.tie_embeddings


@pytest.mark.parametrize("same", [True, False])
def test_an_output_matrix_of_a_tied_model_is_taken_as_transformers_takes_it(
    same: bool, copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy("smollm")
    change_weights(
        folder,
        lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] * (1 if same else 2)}),
    )
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = imported(folder, tmp_path / "ours")
    assert (model.lm_head is None) == same
    assert_same_logits(model, peer)


def test_a_shorter_context_may_be_asked_for(saved: Save, tmp_path: Path) -> None:
    peer, folder = saved("llama3")
    model = imported(folder, tmp_path / "ours", context_length=20)
    assert model.context_length == 20
    assert_same_logits(model, peer)
    with pytest.raises(InteropError, match="max_position_embeddings is 48, less than the context of 49 asked for"):
        read_huggingface(folder, context_length=49, tokenizer="none")


def test_a_sliding_window_is_refused_unless_the_context_is_as_short(copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy("mistral", sliding_window=10)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with pytest.raises(InteropError, match=r"sliding_window: .* --context-length 10 imports the model with a context"):
        read_huggingface(folder, tokenizer="none")
    assert_same_logits(imported(folder, tmp_path / "ours", context_length=10), peer)
    remove_keys(folder, "sliding_window")  # means 4096
    assert read_model_config(folder)[1].context_length == CONTEXT


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwens_window_counts_only_where_it_is_used(kind: str, copy: Callable[..., Path]) -> None:
    folder = copy(kind, sliding_window=10, use_sliding_window=False)
    assert read_model_config(folder)[1].context_length == CONTEXT
    change_config(folder, use_sliding_window=True)  # but no layer has it
    assert read_model_config(folder)[1].context_length == CONTEXT
    change_config(folder, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(InteropError, match="sliding_window: tokens attend to 10 positions"):
        read_model_config(folder)
    change_config(folder, layer_types=None)
    assert read_model_config(folder)[1].context_length == CONTEXT
    change_config(folder, max_window_layers=1)
    with pytest.raises(InteropError, match="sliding_window: tokens attend to 10 positions"):
        read_model_config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architectures: is not supported; known are "),
        ({"architectures": ["LlamaForCausalLM", "x"]}, "architectures: must name one"),
        ({"architectures": [{}]}, "architectures: must name one"),
        ({"architectures": None, "model_type": "phi"}, "architectures: must name one"),
        ({"model_type": "mistral"}, "model_type: does not belong to LlamaForCausalLM .got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act: ours is silu .got 'gelu'"),
        ({"attention_bias": True}, "attention_bias: adds biases that this model lacks: after the attention"),
        ({"mlp_bias": True}, "mlp_bias: adds biases that this model lacks"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: ours rotates whole heads .got 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: ours rotates whole heads"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type: ours has the scalings linear and"),
        ({"rope_parameters": {"type": "dynamic", "factor": 2.0}}, "type: ours has the scalings linear and llama3"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_parameters: low_freq_factor: is missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "rope_factor of our model .* greater than"),
        ({"rope_parameters": 3}, "rope_parameters: must be an object or null .got 3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling and rope_parameters contradict"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be imported"),
        ({"vocab_size": 61}, r"embed_tokens.weight has the shape \[60, 32\], where config.json requires \[61, 32\]"),
        ({"hidden_size": 64}, "where config.json requires"),
        ({"hidden_size": 30, "head_dim": None}, "d_model of our model must be divisible by num_heads"),
        ({"hidden_size": True}, "hidden_size: must be a whole number"),
        ({"hidden_size": 32.0}, "hidden_size: must be a whole number"),
        ({"hidden_size": 1 << 30}, "d_model of our model .* less than or equal to"),
        ({"hidden_size": 10**400}, "hidden_size: must be a whole number from 1 to"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"num_hidden_layers": 3}, "the weights lack model.layers.2.* and 4 more, which config.json requires"),
        ({"num_hidden_layers": 1}, "the weights include model.layers.1.* and 4 more, which do not fit config.json"),
        ({"num_hidden_layers": 9_999}, "the weights lack model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 10**9}, "num_layers of our model .* less than or equal to 10000"),
        ({"num_key_value_heads": 3}, "num_kv_heads of our model must divide num_heads = 4"),
        ({"head_dim": 7}, "head_size of our model .* multiple of 2"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: must be a positive number .got -1"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: must be a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false"),
        ({"tie_word_embeddings": True, "num_hidden_layers": 9_999}, "the weights lack model.layers.2.input"),
        ({"max_position_embeddings": 1 << 24, "head_dim": 64}, "context_length of our model must be at most 4194304"),
        ({"max_position_embeddings": 1 << 30}, "context_length of our model .* less than or equal to"),
    ],
)  # fmt: skip
def test_what_ours_cannot_be_is_refused_with_the_reason(
    changes: dict[str, Any], message: str, copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy("llama2", **changes)
    with pytest.raises(InteropError, match=message) as caught:
        read_huggingface(folder, tokenizer="none")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_numbers_of_the_wrong_type_are_refused(copy: Callable[..., Path]) -> None:
    folder, name = copy("llama2"), "model.layers.0.mlp.up_proj.weight"
    change_weights(folder, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    with pytest.raises(
        InteropError, match=f"{name} is of type I8; weights of the types F32, BF16, F16 can be imported"
    ):
        read_huggingface(folder, tokenizer="none")


def test_an_index_can_only_name_files_beside_it(saved: Save, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    saved("llama2")[0].save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    weight_map = content["weight_map"]
    shutil.copy(folder / weight_map["lm_head.weight"], tmp_path / "outside.safetensors")
    for name, message in {
        "../outside.safetensors": "is not the name of a .safetensors file",
        str(tmp_path / "outside.safetensors"): "is not the name of a .safetensors file",
        "a\\b.safetensors": "is not the name of a .safetensors file",
        "model.bin": "is not the name of a .safetensors file",
        "a\x00.safetensors": "is not the name of a .safetensors file",
        3: "is not the name of a .safetensors file",
        "none.safetensors": "none.safetensors: is missing",
        weight_map["model.embed_tokens.weight"]: "has no lm_head.weight, although",
    }.items():
        index.write_text(json.dumps({"weight_map": {**weight_map, "lm_head.weight": name}}), encoding="utf-8")
        with pytest.raises(InteropError, match=message):
            read_huggingface(folder, tokenizer="none")
    for wrong in ({}, {"weight_map": {}}, {"weight_map": []}, []):
        index.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(InteropError, match=r"weight_map: must name a file|not a JSON object"):
            read_huggingface(folder, tokenizer="none")
    index.write_text(json.dumps(content), encoding="utf-8")
    shard = folder / weight_map["lm_head.weight"]
    shard.unlink()
    os.mkfifo(shard)  # opening it would wait for ever
    with pytest.raises(InteropError, match="is missing, or is not a file"):
        read_huggingface(folder, tokenizer="none")


def test_pickles_are_not_read(copy: Callable[..., Path]) -> None:
    folder = copy("llama2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InteropError, match=r"has no weights: neither model\.safetensors nor"):
        read_huggingface(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InteropError, match=r"no safetensors, only pytorch_model\.bin, a pickle, which runs code"):
        read_huggingface(folder)


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match=r"there is no such folder; a model of the hub must be downloaded first"):
        read_huggingface(tmp_path / "meta-llama" / "Llama-3.2-1B")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InteropError, match=r"run: is already a checkpoint of this project"):
        read_huggingface(tmp_path / "run")
    with pytest.raises(InteropError, match=r"config.json: is missing"):
        read_huggingface(tmp_path)


def test_a_sentencepiece_tokenizer_is_refused_and_the_weights_can_be_had_alone(copy: Callable[..., Path]) -> None:
    folder = copy("llama2")
    (folder / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(InteropError, match=r"SentencePiece .*; or import the weights alone with --tokenizer none"):
        read_huggingface(folder)
    assert read_huggingface(folder, tokenizer="none").tokenizer is None


def test_nothing_is_overwritten(saved: Save, tmp_path: Path) -> None:
    model = read_huggingface(saved("llama2")[1], tokenizer="none")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="already exists, and is not overwritten"):
        write_checkpoint(model, tmp_path / "ours", "float32")


def test_the_command_says_what_it_does(saved: Save, run_main: Callable[..., Any], tmp_path: Path) -> None:
    _, folder = saved("smollm")
    refused = run_main(import_main, "--hf", folder, "--out", tmp_path / "ours")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.endswith("; or import the weights alone with --tokenizer none\n")
    done = run_main(
        import_main, "--hf", folder, "--out", tmp_path / "ours", "--tokenizer", "none", "--context-length", 16
    )
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record | {"bytes": 0} == {
        "event": "import", "path": str(tmp_path / "ours"), "architecture": "LlamaForCausalLM",
        "parameters": record["parameters"], "dtype": "float32", "bytes": 0, "context_length": 16, "vocab_size": VOCAB,
        "tokenizer": False,
    }  # fmt: skip
    assert f"reading {folder}: LlamaForCausalLM, {record['parameters']:,} parameters" in done.err
    assert "note: without a tokenizer" in done.err
    checkpoint = Checkpoint.open(tmp_path / "ours")
    assert checkpoint.step == 0
    assert checkpoint.model_hparams().tie_embeddings
    again = run_main(import_main, "--hf", folder, "--out", tmp_path / "ours", "--tokenizer", "none")
    assert (again.code, "already exists" in again.err) == (2, True)


def test_all_ids_that_end_a_text_are_kept_and_what_is_dropped_is_named(
    copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy()
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [3, 0, VOCAB], "temperature": 0.6, "top_p": 0.9}), encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    model = read_huggingface(folder, tokenizer="none")
    told = " ".join(model.notes)
    for words in ("chat_template.jinja", "(temperature, top_p) are dropped", f"eos_token_id names [{VOCAB}]"):
        assert words in told
    write_checkpoint(model, tmp_path / "ours", "float32")
    assert Checkpoint.open(tmp_path / "ours").eos_token_ids == (3, 0)
    export_huggingface(read_source(tmp_path / "ours", "float32"), tmp_path / "theirs")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "theirs" / name).read_text())["eos_token_id"] == [3, 0]
