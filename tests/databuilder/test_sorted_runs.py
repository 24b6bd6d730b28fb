"""Sorted runs: reading their index."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from databuilder import sorted_runs
from databuilder.sorted_runs import read_index


def test_an_index_is_read_even_if_a_profiler_keeps_its_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's profiler holds the frames, and so the arrays, of other threads for a moment."""
    file = tmp_path / "run"
    file.write_bytes(np.array([5, 9, 3, 7], "<u8").tobytes())  # two keys, and where the ids of each document end
    segment: Any = type("Segment", (), {"num_documents": 2, "index_at": 0, "ids_at": 100})()
    kept: list[Any] = []
    place = sorted_runs._place
    monkeypatch.setattr(sorted_runs, "_place", lambda keys, key: kept.append(keys) or place(keys, key))
    [rows] = read_index(file, [segment], width=2)
    assert (rows.keys.tolist(), rows.begins.tolist(), rows.lengths.tolist()) == ([5, 9], [100, 106], [3, 4])
    assert kept[0].tolist() == [5, 9]
