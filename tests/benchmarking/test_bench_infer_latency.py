import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarking.bench_infer_latency import Repeat, main, summarise
from benchmarking.infer_ways import llama_of
from config.bench_infer import BenchInferConfig, BenchInferSection
from config.io import to_toml
from transformerlm.checkpoint.folder import CheckpointStore
from transformerlm.hparams import ModelHparams
from transformerlm.models.build import build_model
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

ROOT = Path(__file__).parents[2]
CACHES = ("dynamic", "static")
SHAPE = ModelHparams(vocab_size=300, context_length=16, d_model=16, num_layers=1, num_heads=2, d_ff=32)
SCALED = {
    "qkv_bias": True, "head_size": 12, "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0, "rope_original_context": 32,
}  # fmt: skip
TINY_MODEL = [
    word
    for key in ("vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff")
    for word in (f"--model.{key}", str(getattr(SHAPE, key)))
]
# prompt and new tokens fill the context to the last place
TINY_RUN = [
    *("--benchmark.batch-sizes", "1", "3", "--benchmark.prompt-tokens", "10", "--benchmark.new-tokens", "6"),
    *("--benchmark.uncached-tokens", "2", "--benchmark.warmup", "1", "--benchmark.repeats", "2"),
    *("--benchmark.device", "cpu"),
]
SPREADS = {f"{phase}.ms.{name}" for phase in ("prefill", "decode") for name in ("median", "min", "max")}
RECORD_KEYS = SPREADS | {
    *(
        "batch_size",
        "way",
        "decode.floor_ms",
        "decode.floor_share",
        "prefill.tokens_per_second",
        "decode.tokens_per_second",
        "peak_memory_mb",
    ),
    *(f"decode.step_ms.p{percent}" for percent in (50, 90, 99)),
}
UNCACHED_KEYS = {"cache_speedup", "uncached.tokens_per_second"} | {
    f"uncached.ms.{name}" for name in ("median", "min", "max")
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint folder with a tokenizer of the 256 bytes and the end of text."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END_OF_TEXT]).save(tokenizer)
    store = CheckpointStore(
        folder=tmp_path / "checkpoints",
        keep_last=1,
        config_toml=to_toml(BenchInferConfig(model=SHAPE)),
        tokenizer=tokenizer,
    )
    return store.save(model=build_model(SHAPE, seed=0).state_dict(), optimizer={}, state={"step": 7})


def test_random_weights_give_one_line_with_the_documented_keys(read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main([*TINY_MODEL, *TINY_RUN]) == 0
    summary = read_summary()
    assert summary["benchmark"] == "infer"
    assert summary["torch.device"] == "cpu"
    assert summary["torch.dtype"] == "float32"
    assert summary["torch.version"] == torch.__version__
    assert summary["model.parameters"] == sum(p.numel() for p in build_model(SHAPE).parameters())
    assert summary["model.weights_mb"] == pytest.approx(4e-6 * summary["model.parameters"])
    assert summary["setting.prompt_tokens"] == 10
    assert [record["batch_size"] for record in summary["results"]] == [1, 3]
    for record in summary["results"]:
        assert set(record) == RECORD_KEYS | UNCACHED_KEYS
        assert record.pop("way") == "engine"
        assert all(value > 0 for value in record.values())


def test_checkpoint_gives_the_model(checkpoint: Path, read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main(["--checkpoint", str(checkpoint), *TINY_RUN, "--model.d-model", "32", "--model.num-heads", "2"]) == 0
    summary = read_summary()
    assert summary["model.vocab_size"] == 300
    assert summary["model.context_length"] == 16
    assert summary["model.parameters"] == sum(p.numel() for p in build_model(SHAPE).parameters())


def test_without_the_uncached_run_its_keys_are_left_out(read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main([*TINY_MODEL, *TINY_RUN, "--benchmark.uncached-tokens", "0"]) == 0
    assert all(set(record) == RECORD_KEYS for record in read_summary()["results"])


def test_bfloat16_is_measured_when_asked_for(read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main([*TINY_MODEL, *TINY_RUN, "--benchmark.dtype", "bfloat16"]) == 0
    summary = read_summary()
    assert summary["torch.dtype"] == "bfloat16"
    assert summary["model.weights_mb"] == pytest.approx(2e-6 * summary["model.parameters"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_measured(read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main([*TINY_MODEL, *TINY_RUN, "--benchmark.device", "cuda"]) == 0
    summary = read_summary()
    assert summary["torch.dtype"] == "bfloat16"
    assert all(record["peak_memory_mb"] > 0 for record in summary["results"])


def test_summary_of_known_times() -> None:
    settings = BenchInferSection(prompt_tokens=100, new_tokens=3, uncached_tokens=2)
    repeats = [
        Repeat(prefill=0.1, steps=[0.01, 0.03], uncached=0.4, peak_bytes=1_000_000),
        Repeat(prefill=0.2, steps=[0.02, 0.06], uncached=0.8, peak_bytes=3_000_000),
        Repeat(prefill=0.3, steps=[0.03, 0.09], uncached=1.2, peak_bytes=2_000_000),
    ]
    record = summarise(repeats, settings, batch_size=4)
    assert record["prefill.ms.median"] == pytest.approx(200)
    assert record["prefill.tokens_per_second"] == pytest.approx(4 * 100 / 0.2)
    assert [record[f"decode.ms.{name}"] for name in ("min", "median", "max")] == pytest.approx([20, 40, 60])
    assert record["decode.step_ms.p50"] == pytest.approx(30)
    assert record["decode.tokens_per_second"] == pytest.approx(4 / 0.04)
    assert record["uncached.ms.median"] == pytest.approx(400)
    assert record["uncached.tokens_per_second"] == pytest.approx(4 / 0.4)
    assert record["cache_speedup"] == pytest.approx(0.8 / (0.2 + 0.02))
    assert record["peak_memory_mb"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmark.checkpoint", "runs/nowhere"], "runs/nowhere: there is no such folder"),
        (["--benchmark.new-tokens", "9"], "benchmark.new_tokens: prompt_tokens + new_tokens = 19 must fit"),
        (["--benchmark.uncached-tokens", "7"], "benchmark.uncached_tokens: must not exceed new_tokens = 6"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY_MODEL, *TINY_RUN, *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert said in line
    assert captured.out == ""


def test_a_checkpoint_with_too_short_a_context_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(checkpoint), *TINY_RUN, "--benchmark.prompt-tokens", "11"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "has a context of 16 tokens, in which prompt_tokens + new_tokens = 17 do not fit" in line
    assert captured.out == ""


def test_module_prints_the_shipped_configuration_without_torch() -> None:
    code = (
        "import sys; from benchmarking.bench_infer_latency import main; "
        "code = main(['--config', 'config/resources/bench_infer.toml', '--print-config']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(result.stdout)["benchmark"]["new_tokens"] == 64


@pytest.mark.slow
def test_compiled_steps_and_peers_are_measured_on_the_same_weights(read_summary: Callable[[], dict[str, Any]]) -> None:
    pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")
    words = ["--benchmark.batch-sizes", "3", "--benchmark.compiled", "true", "--benchmark.peers", "true"]
    assert main([*TINY_MODEL, *TINY_RUN[3:], *words]) == 0
    results = read_summary()["results"]
    peers = [f"transformers, {dtype}, {cache} cache" for dtype in ("float32", "bfloat16") for cache in CACHES]
    ways = ["engine", "engine, compiled", "engine, compiled, int8", "engine, int8", *peers]
    assert [(record["batch_size"], record["way"]) for record in results] == [(3, way) for way in ways]
    assert all(set(record) == RECORD_KEYS for record in results if record["way"] != "engine")
    floors = {record["way"]: record["decode.floor_ms"] for record in results}
    assert floors["engine"] == pytest.approx(4 * floors["engine, compiled, int8"])
    assert floors["engine"] == pytest.approx(2 * floors["transformers, bfloat16, static cache"])


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1}, {"tie_embeddings": True}, SCALED])
def test_the_peer_has_the_same_logits(changes: dict[str, Any]) -> None:
    pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")
    model = build_model(SHAPE.model_copy(update=changes), seed=1).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(llama_of(model)(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


def test_bits_per_byte_with_weights_as_they_are_and_rounded(
    workspace: Path, read_summary: Callable[[], dict[str, Any]]
) -> None:
    words = ["--model.vocab-size", "400", "--benchmark.valid", str(workspace / "valid.dat")]
    assert main([*TINY_MODEL, *TINY_RUN, *words]) == 0
    summary = read_summary()
    exact, rounded = summary["bits_per_byte.weights"], summary["bits_per_byte.int8"]
    assert exact > 0
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert main([*TINY_MODEL, *TINY_RUN, "--benchmark.valid", str(workspace / "valid.dat")]) == 2


@pytest.mark.slow
def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "benchmarking.bench_infer_latency", *TINY_MODEL, *TINY_RUN]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["benchmark"] == "infer"
    assert "batch 3, engine, decode" in result.stderr
