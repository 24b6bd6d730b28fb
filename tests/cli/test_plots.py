"""The loss curve is drawn whatever the run went through."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.plots import plot_loss, read_records


@pytest.mark.parametrize("losses", [[], [3.0, 2.0], [3.0, "NaN", 2.0], ["NaN"], ["Infinity", 1.0]])
def test_the_curve_is_a_png(losses: list[float | str], tmp_path: Path) -> None:
    records = [{"event": "train_step", "step": n, "metrics.loss": loss} for n, loss in enumerate(losses)]
    records.append({"event": "train_end", "step": len(losses)})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert read_records(tmp_path) == records
    path = plot_loss(tmp_path)
    assert path == tmp_path / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_step_without_a_finite_loss_is_a_gap_and_not_a_word_on_the_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: list[list[float]] = []
    plot = Axes.plot

    def spy(self: Axes, steps: list[int], losses: list[float], **style: Any) -> object:
        drawn.append(losses)
        return plot(self, steps, losses, **style)

    monkeypatch.setattr(Axes, "plot", spy)
    lines = [{"event": "train_step", "step": n, "metrics.loss": loss} for n, loss in enumerate((3.0, "NaN"))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plot_loss(tmp_path)
    assert all(isinstance(loss, float) for losses in drawn for loss in losses)
