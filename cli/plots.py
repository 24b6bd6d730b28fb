"""The loss curve of a run, from its metrics.jsonl."""

import io
import json
from pathlib import Path
from typing import Any

from transformerlm.utils.files import atomic_write_bytes


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run, in order."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def plot_loss(run_dir: Path) -> Path:
    """Draw training and validation loss over steps; return the path of the PNG, `loss.png` in the run folder."""
    import matplotlib

    matplotlib.use("Agg")  # needs no window system
    import matplotlib.pyplot as plt

    records = read_records(run_dir)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for event, key, label, style in (
        ("train_step", "metrics.loss", "training (one batch)", {"linewidth": 1, "alpha": 0.7}),
        ("validation", "metrics.valid_loss", "validation", {"linewidth": 2, "marker": "o"}),
    ):
        chosen = [record for record in records if record.get("event") == event]
        losses = [float(record[key]) for record in chosen]  # float("NaN") is valid too, and leaves a gap in the curve
        axes.plot([record["step"] for record in chosen], losses, label=label, **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=run_dir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run_dir / "loss.png"
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    atomic_write_bytes(path, png.getvalue())
    return path
