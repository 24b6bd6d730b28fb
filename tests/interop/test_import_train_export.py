"""A tiny model shaped as Llama 3: imported, spoken with, trained for twenty steps, exported, loaded by transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from cli import export as export_command
from cli import import_model as import_command
from cli import infer, make_data, train
from transformerlm.inference import generate
from transformerlm.inference.predictor import Predictor
from transformerlm.tokenizer import Tokenizer
from transformerlm.training import Checkpoint

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
PADDED_VOCAB = 512
Run = Callable[..., Any]


def save_tokenizer(folder: Path, corpus: Path) -> None:
    """Train a tokenizer like Llama 3's, and save it as its folder has it."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train([str(corpus)], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (BEGIN, END)])
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[begin]),
        ]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def llama(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama with grouped queries, scaled rotation and a padded vocabulary, and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    save_tokenizer(folder, workspace / "corpus.txt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=PADDED_VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def assert_same_model(predictor: Predictor, peer: torch.nn.Module) -> None:
    model = predictor.model
    ids = torch.randint(PADDED_VOCAB, (2, model.context_length), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids), peer(ids).logits, atol=1e-5, rtol=1e-5)
    prompt = torch.tensor([predictor.encode_prompt("the little dog")])
    ours = generate(model, prompt, 20, temperature=0.0)
    theirs = peer.generate(  # type: ignore[operator]
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    assert ours.flatten().tolist()[-20:] == theirs.flatten().tolist()[-20:]


def test_imported_trained_and_exported(
    llama: Path, documents: list[str], run_main: Run, write_toml: Callable[..., Path],
    train_tables: dict[str, dict[str, Any]], tmp_path: Path,
) -> None:  # fmt: skip
    done = run_main(import_command.main, "--hf", llama, "--out", tmp_path / "imported")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tokenizer"] is True
    imported = Predictor.from_checkpoint(tmp_path / "imported", device="cpu")
    assert_same_model(imported, transformers.AutoModelForCausalLM.from_pretrained(llama).eval())
    peer_tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    for text in documents[:20]:
        assert imported.tokenizer.encode(text) == peer_tokenizer(text, add_special_tokens=False).input_ids
        assert imported.encode_prompt(text[:40]) == peer_tokenizer(text[:40]).input_ids
    told = run_main(
        infer.main, "--checkpoint", tmp_path / "imported", "--prompt", "the", "--sampling.max-new-tokens", 5
    )
    assert told.code == 0, told.err

    text = tmp_path / "text.txt"
    text.write_text(END.join(documents), encoding="utf-8", newline="")
    made = run_main(
        make_data.main, "--input.sources", text, "--input.separator", END, "--input.valid-fraction", 0.1,
        "--output.tokenizer", tmp_path / "imported", "--output.train", tmp_path / "train.dat",
        "--output.valid", tmp_path / "valid.dat",
    )  # fmt: skip
    assert made.code == 0, made.err
    del train_tables["model"]
    train_tables["data"] = {
        "train": str(tmp_path / "train.dat"), "valid": str(tmp_path / "valid.dat"),
        "tokenizer": str(tmp_path / "imported"),
    }  # fmt: skip
    train_tables["training"] |= {"init_from": str(tmp_path / "imported"), "steps": 20, "dtype": "float32"}
    train_tables["logging"]["backend"] = "noop"
    trained = run_main(train.main, "--config", write_toml(train_tables))
    assert trained.code == 0, trained.err

    run_dir = tmp_path / "runs/tiny"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["metrics.loss"] for record in lines if record["event"] == "train_step"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
    hparams = Checkpoint.open(run_dir).model_hparams()
    assert (hparams.vocab_size, hparams.rope_scaling, hparams.num_kv_heads) == (PADDED_VOCAB, "llama3", 2)
    assert Tokenizer.load(Checkpoint.open(run_dir).path).sha256() == imported.tokenizer.sha256()

    written = run_main(export_command.main, "--checkpoint", run_dir, "--format", "hf", "--out", tmp_path / "exported")
    assert written.code == 0, written.err
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert_same_model(Predictor.from_checkpoint(run_dir, device="cpu"), peer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in documents[20:40]:
        assert again(text).input_ids == peer_tokenizer(text).input_ids
