"""Memory helpers: silent without CUDA, true on a device."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from profiling import memory


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.mark.usefixtures("no_cuda")
def test_without_cuda_everything_is_a_no_op(tmp_path: Path) -> None:
    assert memory.start_history() is False
    assert memory.snapshot() is None
    assert memory.dump_snapshot(tmp_path / "memory.pickle") is None
    assert memory.summary() == ""
    assert memory.peaks() == {}
    memory.reset_peaks()
    memory.stop_history()

    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_dumped_whole_and_in_the_viewers_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"segments": [], "device_traces": [[{"action": "alloc"}]]}
    monkeypatch.setattr(memory, "snapshot", lambda: state)
    path = tmp_path / "profile" / "memory.pickle"

    assert memory.dump_snapshot(path) == path
    assert pickle.loads(path.read_bytes()) == state
    assert list(path.parent.iterdir()) == [path]


def test_peaks_before_the_first_use_of_a_device_do_not_initialise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    uninitialised = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)
    monkeypatch.setattr(torch, "cuda", uninitialised)  # any other use of it is an AttributeError

    assert memory.peaks() == {}
    assert memory.snapshot() is None
    assert memory.summary() == ""
    memory.reset_peaks()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_device_peaks_follow_the_allocations(tmp_path: Path) -> None:
    assert memory.start_history(max_entries=1000)
    held = torch.zeros(1 << 20, device="cuda")
    memory.reset_peaks()
    before = memory.peaks()
    torch.zeros(1 << 22, device="cuda")
    after = memory.peaks()
    path = memory.dump_snapshot(tmp_path / "memory.pickle")
    memory.stop_history()

    assert after["allocated_bytes"] - before["allocated_bytes"] == 4 << 22
    assert after["reserved_bytes"] >= after["allocated_bytes"] >= held.nbytes
    assert path is not None
    assert any(pickle.loads(path.read_bytes())["device_traces"])
    assert "Allocated memory" in memory.summary()
    memory.reset_peaks()
    assert memory.peaks()["allocated_bytes"] < after["allocated_bytes"]
