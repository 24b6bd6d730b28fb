import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarking.bench_tokenizer import SHORT_CALLS, main, summarise
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

ROOT = Path(__file__).parents[2]
TEXT = "Once upon a time there was a naïve café owner 🙂 who said: 'I'll be back.'\n" * 30 + END_OF_TEXT
TIMED = ("train", "train.count", "train.merge", "encode_cold", "encode_warm", "decode")
PEER_TIMED = ("tiktoken.encode", "tiktoken.decode")


def _keys(names: tuple[str, ...]) -> set[str]:
    keys = {f"{name}.seconds.{part}" for name in names for part in ("median", "min", "max")}
    keys |= {f"{name}.mb_per_second" for name in names}
    return keys | {f"{name}.tokens_per_second" for name in names if not name.startswith("train")}


OWN_KEYS = _keys(TIMED) | {f"short_call.us.{part}" for part in ("median", "min", "max")}
PEER_KEYS = _keys(PEER_TIMED) | {
    *(f"tiktoken.short_call.us.{part}" for part in ("median", "min", "max")),
    *(f"ratio.{name}" for name in ("encode_cold", "encode_warm", "decode", "short_call")),
}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(TEXT.encode("utf-8"))
    return [
        *("--benchmark.sources", str(corpus), "--benchmark.vocab-size", "280", "--benchmark.workers", "1"),
        *("--benchmark.warmup", "0", "--benchmark.repeats", "2"),
    ]


def test_one_line_with_the_documented_keys(arguments: list[str], read_summary: Callable[[], dict[str, Any]]) -> None:
    assert main(arguments) == 0
    summary = read_summary()
    assert set(summary) >= OWN_KEYS | PEER_KEYS
    assert all(summary[key] > 0 for key in OWN_KEYS | PEER_KEYS)
    assert summary["benchmark"] == "tokenizer"
    assert summary["train.vocab_size"] == summary["tokenizer.vocab_size"] == 280
    assert summary["text.mb"] == len(TEXT.encode("utf-8")) / 1e6
    assert summary["text.bytes_per_token"] * summary["text.tokens"] == pytest.approx(1e6 * summary["text.mb"])


def test_a_given_tokenizer_is_the_one_that_encodes(
    arguments: list[str], tmp_path: Path, read_summary: Callable[[], dict[str, Any]]
) -> None:
    Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END_OF_TEXT]).save(tmp_path)
    assert main([*arguments, "--benchmark.tokenizer", str(tmp_path)]) == 0
    summary = read_summary()
    assert summary["tokenizer.vocab_size"] == 257
    assert summary["train.vocab_size"] == 280
    assert summary["text.tokens"] == len(TEXT.encode("utf-8")) - len(END_OF_TEXT) + 1


def test_the_text_is_cut_between_characters(arguments: list[str], read_summary: Callable[[], dict[str, Any]]) -> None:
    place = TEXT.encode("utf-8").index("🙂".encode())
    assert main([*arguments, "--benchmark.megabytes", str((place + 2) / 1e6)]) == 0
    assert read_summary()["text.mb"] == place / 1e6


def test_without_tiktoken_its_keys_are_left_out(
    arguments: list[str],
    read_summary: Callable[[], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # what makes an import fail
    assert main(arguments) == 0
    summary = read_summary()
    assert set(summary) >= OWN_KEYS
    assert not set(summary) & PEER_KEYS
    assert summary["tiktoken.version"] is None


def test_other_ids_than_tiktokens_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second merge has the lower id, so that tiktoken, which merges by id, merges it first."""
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"nc", 257: b"On"}
    Tokenizer(vocab, [(b"O", b"n"), (b"n", b"c")], [END_OF_TEXT]).save(tmp_path)
    assert main([*arguments, "--benchmark.tokenizer", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "tiktoken gives other ids" in captured.err


def test_summary_of_known_times() -> None:
    timings = {
        "train": [4.0],
        "encode_cold": [1.0, 2.0, 6.0],
        "encode_warm": [0.5],
        "decode": [0.1],
        "short_call": [SHORT_CALLS * 5e-6],
        "tiktoken.encode": [1.0],
        "tiktoken.decode": [0.2],
        "tiktoken.short_call": [SHORT_CALLS * 10e-6],
    }
    results = summarise(timings, num_bytes=8_000_000, num_tokens=2_000_000)
    assert results["train.mb_per_second"] == 2
    assert results["encode_cold.seconds.max"] == 6
    assert results["encode_cold.mb_per_second"] == 4
    assert results["encode_cold.tokens_per_second"] == 1_000_000
    assert results["short_call.us.median"] == pytest.approx(5)
    ratios = [results[f"ratio.{name}"] for name in ("encode_cold", "encode_warm", "decode", "short_call")]
    assert ratios == pytest.approx([0.5, 2, 2, 2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmark.sources", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--benchmark.tokenizer", "nowhere"], "nowhere"),
        (["--benchmark.megabytes", "0"], "benchmark.megabytes"),
        (["--benchmark.megabytes", "0.000003"], "the text has 3 characters"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "--benchmark.sources":
        arguments = arguments[2:]
    assert main([*arguments, *words]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert said in line
    assert captured.out == ""


def test_module_prints_the_shipped_configuration_without_torch() -> None:
    code = (
        "import sys; from benchmarking.bench_tokenizer import main; "
        "code = main(['--config', 'config/resources/bench_tokenizer.toml', '--print-config']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(result.stdout)["benchmark"]["megabytes"] == 4


def test_runs_as_a_module(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarking.bench_tokenizer", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["benchmark"] == "tokenizer"
    assert "encode_cold" in result.stderr
