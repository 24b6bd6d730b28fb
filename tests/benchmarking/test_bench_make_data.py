"""The benchmark of making token files: what it runs, what it reports, and one real run on a small text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarking import bench_make_data, runner
from benchmarking.bench_make_data import main
from benchmarking.make_data_cell import PREPARE, Cell
from benchmarking.runner import CellError
from config.bench_make_data import ALONE, OURS

SECONDS = {OURS: 2.0, ALONE: 1.5, "tiktoken": 10.0}


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Replace the processes by invented figures; returns the cells that were run."""
    cells: list[Cell] = []

    def run(cell: Cell, *, timeout: float) -> dict[str, Any]:
        assert timeout > 0
        cells.append(cell)
        if cell.tool == PREPARE:
            return {"bytes": cell.num_bytes, "documents": 3}
        if cell.tool == "tokenizers":
            raise CellError("timeout")
        return {
            "seconds": SECONDS[cell.tool], "memory_before_bytes": 1e6, "peak_memory_bytes": 2e6,
            "tokens": 6, "sum": 1,
        }  # fmt: skip

    monkeypatch.setattr(bench_make_data, "run_cell", run)
    monkeypatch.setattr(runner, "installed_version", lambda _name: "1.0")
    return cells


def test_tools_take_turns_and_the_figures_follow(
    fake_cells: list[Cell], read_summary: Callable[[], dict[str, Any]]
) -> None:
    words = ["--benchmark.megabytes", "10", "20", "--benchmark.peer-megabytes", "10", "--benchmark.repeats", "2"]
    assert main(words) == 0
    tools = [cell.tool for cell in fake_cells]
    assert tools == [
        *(PREPARE, OURS, ALONE, "tiktoken", "tokenizers", OURS, ALONE, "tiktoken"),
        *(PREPARE, OURS, ALONE, OURS, ALONE),
    ]
    summary = read_summary()
    assert summary[f"10.{OURS}.mb_per_second"] == 5.0
    assert summary["10.not_tokenization"] == 0.25
    assert summary["10.ratio.tiktoken"] == 5.0
    assert summary["10.tokenizers.status"] == "timeout"
    assert summary[f"20.{OURS}.peak_memory_mb"] == 2.0
    assert "20.tiktoken.tokens" not in summary


def test_other_ids_are_not_compared(
    fake_cells: list[Cell], monkeypatch: pytest.MonkeyPatch, read_summary: Callable[[], dict[str, Any]]
) -> None:
    run = bench_make_data.run_cell
    monkeypatch.setattr(
        bench_make_data,
        "run_cell",
        lambda cell, *, timeout: run(cell, timeout=timeout) | ({"sum": 2} if cell.tool == "tiktoken" else {}),
    )
    assert main(["--benchmark.megabytes", "10", "--benchmark.repeats", "2", "--benchmark.peers", "tiktoken"]) == 0
    summary = read_summary()
    assert summary["10.tiktoken.status"] == "other ids"
    assert "10.ratio.tiktoken" not in summary
    assert [cell.tool for cell in fake_cells].count("tiktoken") == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_tools_make_the_same_ids_of_a_small_text(
    workspace: Path, read_summary: Callable[[], dict[str, Any]]
) -> None:
    words = [
        "--benchmark.sources",
        str(workspace / "corpus.txt"),
        "--benchmark.tokenizer",
        str(workspace / "tokenizer"),
    ]
    assert main([*words, "--benchmark.megabytes", "1", "--benchmark.repeats", "1"]) == 0
    summary = read_summary()
    assert summary[f"1.{OURS}.tokens"] == summary[f"1.{ALONE}.tokens"] > 1000
    assert 0.9e6 < summary["1.text.bytes"] < 1.1e6
    assert not [key for key in summary if key.endswith(".status")], json.dumps(summary)
    assert summary[f"1.{OURS}.mb_per_second"] > 0
