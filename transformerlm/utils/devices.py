"""Devices: which one to use, what it can do at best, how much memory is in use."""

import os
import resource
import sys

import torch

from transformerlm.utils.dtypes import parse_dtype
from transformerlm.utils.errors import ConfigError

# Dense peak in FLOP/s, of bfloat16 and of float32 without tensor cores, from the vendor's data sheets, by a part of the
# device's name; of two parts that fit, the first counts.
_PEAK_FLOPS = {
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}


def select_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises `ConfigError` for a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available.get(name, False):
        raise ConfigError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
    return torch.device(name)


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type called `name`; `auto` is bfloat16 on CUDA, where it is fast, and float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return parse_dtype(name)


def select_training_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type called `name`; `auto` is bfloat16 where `multiplies_bfloat16_faster`, else float32."""
    if name == "auto":
        name = "bfloat16" if multiplies_bfloat16_faster(device) else "float32"
    return parse_dtype(name)


def multiplies_bfloat16_faster(device: torch.device) -> bool:
    """Return whether the processor has instructions for products of bfloat16; without them float32 is faster.

    On a CPU these are AMX, or AVX-512's bf16 (measured: one with AVX-512 but neither of them multiplies float32
    three times as fast as bfloat16, which it has to widen first).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def set_threads(threads: int) -> None:
    """Let torch use `threads` CPU threads; 0 leaves its own choice."""
    if threads:
        torch.set_num_threads(threads)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the device's dense peak in FLOP/s for matrix products in `dtype`, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    bfloat16, float32 = next((peaks for part, peaks in _PEAK_FLOPS.items() if part in name), (None, None))
    if dtype == torch.bfloat16:
        return bfloat16
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"  # otherwise TF32
    return float32 if exact else None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: allocated on a CUDA device, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fingerprint(device: torch.device) -> dict[str, str | int]:
    """Return what a bit-exact repetition depends on, for people to compare."""
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
    }
