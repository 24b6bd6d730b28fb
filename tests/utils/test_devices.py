"""Which device is used, and what is known about it."""

import json

import pytest
import torch

from transformerlm.utils.devices import (
    fingerprint,
    peak_flops,
    peak_memory_bytes,
    select_device,
    select_training_dtype,
    set_threads,
)
from transformerlm.utils.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_takes_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert select_device("auto").type == expected
        assert select_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_a_device_that_is_not_here_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device '{name}' is not available here; use 'auto' or 'cpu'"):
        select_device(name)


def test_zero_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    set_threads(0)
    assert torch.get_num_threads() == before
    set_threads(before)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA A100-SXM4-40GB", 312, 19.5),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA L40S", 362, 91.6),
        ("Quadro 4000", None, None),
    ],
)
def test_the_peak_is_looked_up_by_the_devices_name(
    name: str, bfloat16: float | None, float32: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    for dtype, teraflops in ((torch.bfloat16, bfloat16), (torch.float32, float32)):
        expected = None if teraflops is None else teraflops * 1e12
        assert peak_flops(torch.device("cuda"), dtype) == expected
        assert peak_flops(CPU, dtype) is None
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(torch.device("cuda"), torch.float32) is None


def test_memory_and_fingerprint_of_the_cpu() -> None:
    assert 10e6 < peak_memory_bytes(CPU) < 1e12
    found = fingerprint(CPU)
    assert json.loads(json.dumps(found)) == found
    assert (found["device"], found["torch"]) == ("cpu", torch.__version__)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [(False, False, torch.float32), (True, True, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_training_is_in_bfloat16_where_the_processor_multiplies_it_faster(
    amx: bool, avx512_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert select_training_dtype("auto", CPU) == expected
    assert select_training_dtype("float32", CPU) == torch.float32
    assert select_training_dtype("bfloat16", CPU) == torch.bfloat16
    assert select_training_dtype("auto", torch.device("mps")) == torch.float32
