"""CUDA memory of this process: a history for the memory viewer, a summary for people, peaks for records.

Without CUDA every function does nothing and says so in what it returns. Only `start_history`
initialises CUDA; before the program's first use of the device the others have nothing to measure.

Source: "Understanding CUDA Memory Usage", https://docs.pytorch.org/docs/stable/torch_cuda_memory.html.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

from transformerlm.utils.files import atomic_write


def start_history(max_entries: int = 100_000) -> bool:
    """Begin to record allocations and where in the code they were made; return whether it records.

    The newest `max_entries` events are kept, at several KB each. Call it before the model is built.
    """
    import torch

    if not torch.cuda.is_available():
        return False
    torch.cuda.init()  # recording is a state of the device's allocator, which must exist
    torch.cuda.memory._record_memory_history(max_entries=max_entries)
    return True


def stop_history() -> None:
    """Stop recording allocations."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.memory._record_memory_history(enabled=None)


def snapshot() -> Mapping[str, object] | None:
    """Return the allocator's state and the recorded history; None without CUDA."""
    import torch

    return torch.cuda.memory._snapshot() if torch.cuda.is_initialized() else None


def dump_snapshot(path: Path | str) -> Path | None:
    """Write `snapshot()` to `path`, to be dropped on https://pytorch.org/memory_viz; return the path.

    The file is a pickle, as that viewer asks for. Without CUDA nothing is written, and None returned.
    """
    state = snapshot()
    if state is None:
        return None
    path = Path(path)
    with atomic_write(path) as file:
        pickle.dump(state, file)
    return path


def summary() -> str:
    """Return the allocator's statistics of the current device as a table; "" without CUDA."""
    import torch

    return torch.cuda.memory_summary() if torch.cuda.is_initialized() else ""


def peaks() -> dict[str, int]:
    """Return the current device's peaks since the start or `reset_peaks`, in bytes; {} without CUDA.

    `allocated_bytes` is what tensors occupied, `reserved_bytes` what the allocator took from the device.
    """
    import torch

    if not torch.cuda.is_initialized():
        return {}
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def reset_peaks() -> None:
    """Start the peaks again from what is in use now."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
