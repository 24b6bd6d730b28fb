"""The benchmark of training: what it runs, what it reports, and one real step of a tiny model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarking import bench_train, runner
from benchmarking.bench_train import main
from benchmarking.runner import CellError, run_cell
from benchmarking.train_cell import PEAK, Cell
from config.bench_train import OURS, PEERS

CONFIG = Path(__file__).parents[2] / "config/resources/bench_train.toml"
SPEEDS = {OURS: 300.0, "transformerlm_eager": 200.0, "llama_float32_eager": 100.0}


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Replace the processes by invented figures; returns the cells that were run."""
    cells: list[Cell] = []

    def run(cell: Cell, *, timeout: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        assert timeout > 0
        assert (environment is None) == (cell.tool == PEAK)
        cells.append(cell)
        if cell.tool == PEAK:
            return {"peak_flops.bfloat16": 1e4, "peak_flops.float32": 6e3}
        if cell.tool not in SPEEDS:
            raise CellError("timeout")
        speed = SPEEDS[cell.tool] + len(cells)
        return {
            "first_step_seconds": float(len(cells)), "tokens_per_second": speed, "readings": 3,
            "peak_memory_bytes": 2e6, "flops_per_token": 10.0, "dtype": "float32",
        }  # fmt: skip

    monkeypatch.setattr(bench_train, "run_cell", run)
    monkeypatch.setattr(runner, "installed_version", lambda _name: "1.0")
    monkeypatch.setattr(bench_train, "_has_cuda", lambda: False)
    return cells


def test_tools_take_turns_and_the_figures_follow(fake_cells: list[Cell], capsys: pytest.CaptureFixture[str]) -> None:
    peers = ("transformerlm_eager", "llama_bfloat16_compiled")
    words = ["--config", str(CONFIG), "--benchmark.sizes", "S", "gpt2", "--benchmark.peers", *peers]
    assert main([*words, "--benchmark.repeats", "2"]) == 0
    assert [cell.tool for cell in fake_cells] == [PEAK, OURS, *peers, OURS, "transformerlm_eager"]
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary[f"S.{OURS}.tokens_per_second.median"] == 303.5
    assert summary[f"S.{OURS}.model_flops"] == 3035.0
    assert summary[f"S.{OURS}.mfu"] == 0.3035  # of the larger peak
    assert (summary[f"S.{OURS}.first_step_seconds.cold"], summary[f"S.{OURS}.first_step_seconds.warm"]) == (2, 5)
    assert summary["S.ratio.transformerlm_eager"] == pytest.approx(303.5 / 204.5)
    assert summary["S.llama_bfloat16_compiled.status"] == "timeout"
    assert "gpt2    is for CUDA and is skipped" in err
    assert err.count("timeout") == 1
    assert not any(key.startswith("gpt2.") for key in summary)


def test_without_transformers_ours_are_measured_alone(
    fake_cells: list[Cell], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "installed_version", lambda _name: None)
    assert main(["--config", str(CONFIG), "--benchmark.sizes", "M", "--benchmark.repeats", "2"]) == 0
    assert {cell.tool for cell in fake_cells} == {PEAK, OURS, PEERS[0]}
    assert "uv sync --extra bench" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["transformerlm_eager", "llama_float32_eager"])
def test_a_process_trains_a_tiny_model(tool: str) -> None:
    if tool.startswith("llama"):
        pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")
    size = {
        "vocab_size": 50, "context_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16,
        "batch_size": 4, "micro_batch_size": 2,
    }  # fmt: skip
    result = run_cell(Cell(tool, size, "cpu", 1, 0.01), timeout=110)
    assert result["tokens_per_second"] > 0
    assert result["flops_per_token"] == 6 * (4 * 16**2 + 3 * 16**2 + 50 * 16) + 12 * 16 * 8
    assert result["dtype"] in ("float32", "bfloat16")


@pytest.mark.slow
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(CellError, match=r"failed: exit code 1, .*ValidationError"):
        run_cell(Cell(OURS, {"vocab_size": "many"}, "cpu", 1, 0.01), timeout=110)
