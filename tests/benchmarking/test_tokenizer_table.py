from typing import Any

import pytest

from benchmarking.runner import OTHER_IDS, Outcome
from benchmarking.tokenizer_rows import OURS, Row, plan
from benchmarking.tokenizer_table import print_results, summarise
from config.bench_tokenizer import BenchTokenizerSection

BYTES = {"main": 100_000_000, "main.head": 4_000_000}
ENCODE = Row("encode_array.1", "encode to array, 1 thread", "encode_array", "main")
SHORT = Row("short_call", "a call", "short_call", "main", unit="µs")
TRAIN = Row("train.300.1", "train 300", "train", "main", (OURS, "rustbpe"), ("cold",), "s")


def ran(*seconds: float, memory: float = 1e6, **others: Any) -> Outcome:
    others |= {"peak_memory_bytes": memory, "memory_before_bytes": memory / 2, "same": True}
    return Outcome([{"seconds": {"cold": cold, "warm": cold / 2}, **others} for cold in seconds])


def test_medians_speeds_and_ratios() -> None:
    outcomes = {OURS: ran(1.0, 9.0, 2.0, memory=3e6), "tiktoken": ran(8.0)}
    summary = summarise(ENCODE, outcomes, BYTES)
    assert summary["encode_array.1.transformerlm.cold.seconds.median"] == 2
    assert summary["encode_array.1.transformerlm.cold.seconds.max"] == 9
    assert summary["encode_array.1.transformerlm.warm.mb_per_second"] == 100
    assert summary["encode_array.1.transformerlm.peak_memory_mb"] == 3
    assert summary["encode_array.1.transformerlm.memory_before_mb"] == 1.5
    assert summary["encode_array.1.ratio.tiktoken.cold"] == 4
    assert not [key for key in summary if "gigatoken" in key]


def test_the_slow_peer_is_compared_by_the_speed_on_its_part_of_the_text() -> None:
    outcomes = {OURS: ran(1.0), "tokenizers": ran(4.0)}
    summary = summarise(ENCODE, outcomes, BYTES)
    assert summary["encode_array.1.tokenizers.cold.mb_per_second"] == 1
    assert summary["encode_array.1.ratio.tokenizers.cold"] == 100


def test_short_calls_are_compared_by_the_call(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {OURS: ran(2e-6), "tokenizers": ran(5e-6)}
    summary = summarise(SHORT, outcomes, BYTES)
    assert summary["short_call.ratio.tokenizers.cold"] == pytest.approx(2.5)
    assert "short_call.transformerlm.cold.mb_per_second" not in summary
    print_results([SHORT], summary, [OURS, "tokenizers"])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "a call, cold" in line)
    assert line.split()[-3:] == ["2", "5", "(2.50)"]


def test_trainers_are_compared_by_memory_and_tokens_too(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {
        OURS: ran(1.0, memory=50e6, tokens=["a", "b", "c"]),
        "rustbpe": ran(3.0, memory=200e6, tokens=["a", "b", "x", "y"]),
    }
    summary = summarise(TRAIN, outcomes, BYTES)
    assert summary["train.300.1.rustbpe.shared_tokens"] == 0.5
    assert summary["train.300.1.ratio.rustbpe.cold"] == 3
    print_results([TRAIN], summary, [OURS, "tiktoken", "rustbpe"])
    printed = capsys.readouterr().err
    assert "200 (0.25)" in printed
    assert "tiktoken" not in printed  # it trains nothing


def test_what_cannot_be_compared_is_said_and_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    different = Outcome()
    different.add({"seconds": {"cold": 1.0}, "peak_memory_bytes": 1, "same": False})
    outcomes = {
        OURS: ran(1.0),
        "gigatoken": Outcome(status="failed: exit code -11, nothing on stderr"),
        "tiktoken": different,
    }
    summary = summarise(ENCODE, outcomes, BYTES)
    assert summary["encode_array.1.tiktoken.status"] == OTHER_IDS
    assert {key for key in summary if "gigatoken" in key} == {"encode_array.1.gigatoken.status"}
    assert not [key for key in summary if "ratio" in key]
    print_results([ENCODE], summary, [OURS, "gigatoken", "tiktoken"])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "cold" in line)
    assert line.split()[-4:] == ["100", "failed", "other", "ids"]


def test_without_ours_there_is_no_ratio() -> None:
    outcomes = {OURS: Outcome(status="timeout"), "tiktoken": ran(1.0)}
    summary = summarise(ENCODE, outcomes, BYTES)
    assert "encode_array.1.tiktoken.cold.mb_per_second" in summary
    assert not [key for key in summary if "ratio" in key]


def test_rows_follow_the_settings() -> None:
    settings = BenchTokenizerSection(rows=("train", "multilingual"), vocab_sizes=(300, 1000), threads=(1, 4))
    assert [row.name for row in plan(settings, {"main"})] == [
        "train.300.1", "train.300.4", "train.1000.1", "train.1000.4",
    ]  # fmt: skip
    (row,) = plan(BenchTokenizerSection(rows=("multilingual",)), {"main", "multilingual"})
    assert (row.text_of(OURS), row.text_of("tokenizers")) == ("multilingual", "multilingual.head")
