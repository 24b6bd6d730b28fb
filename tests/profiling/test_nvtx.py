"""NVTX ranges: the switches, balance of push and pop, and exceptions that pass unchanged."""

import subprocess
import sys
import traceback
from pathlib import Path
from typing import get_args

import pytest
import torch

from profiling import nvtx
from transformerlm.utils.errors import ConfigError


def test_levels_and_their_type_agree() -> None:
    assert get_args(nvtx.Level) == nvtx.LEVELS


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "on", "yes"])
def test_switched_on(value: str, nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.SWITCH, value)
    with nvtx.range("outer"), nvtx.range("inner"):
        nvtx.mark("here")

    assert nvtx.enabled()
    assert nvtx_calls == ["+outer", "+inner", "!here", "-", "-"]


@pytest.mark.parametrize("value", [None, "", "0", "false", "Off", "no"])
def test_switched_off(value: str | None, nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(nvtx.SWITCH)
    else:
        monkeypatch.setenv(nvtx.SWITCH, value)
    with nvtx.range("outer"):
        nvtx.mark("here")

    assert not nvtx.enabled()
    assert nvtx_calls == []


@pytest.mark.parametrize(("chosen", "count"), [(None, 1), ("", 1), ("coarse", 1), ("Fine", 2), ("verbose", 3)])
def test_a_level_includes_the_coarser_ones(
    chosen: str | None, count: int, nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen is not None:
        monkeypatch.setenv(nvtx.LEVEL_SWITCH, chosen)
    levels: tuple[nvtx.Level, ...] = ("coarse", "fine", "verbose")
    for level in levels:
        nvtx.mark(level, level)

    assert [nvtx.enabled(level) for level in levels] == [index < count for index in range(3)]
    assert nvtx_calls == [f"!{level}" for level in levels[:count]]


@pytest.mark.parametrize(("variable", "value"), [(nvtx.SWITCH, "maybe"), (nvtx.LEVEL_SWITCH, "deep")])
@pytest.mark.usefixtures("nvtx_calls")
def test_an_unknown_value_is_reported(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}: expected .*got '{value}'"):
        nvtx.enabled()


@pytest.mark.parametrize("kind", [RuntimeError, StopIteration, GeneratorExit, KeyboardInterrupt])
def test_an_exception_passes_unchanged(kind: type[BaseException], nvtx_calls: list[str]) -> None:
    error = kind("from inside")
    with pytest.raises(kind) as caught, nvtx.range("outer"), nvtx.range("inner"):
        raise error

    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert [frame.filename for frame in traceback.extract_tb(error.__traceback__)] == [__file__]
    assert nvtx_calls == ["+outer", "+inner", "-", "-"]


def test_the_context_of_an_exception_is_kept() -> None:
    first, second = ValueError("first"), KeyError("second")
    with pytest.raises(KeyError) as caught, nvtx.range("outer"):
        try:
            raise first
        except ValueError:
            raise second  # noqa: B904

    assert caught.value.__context__ is first


def test_switched_on_without_cuda_is_a_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.SWITCH, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nvtx.load_backend.cache_clear()
    with nvtx.range("outer"):
        nvtx.mark("here")

    assert not nvtx.enabled()
    nvtx.load_backend.cache_clear()


def test_a_build_of_torch_without_nvtx_is_a_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("NVTX functions not installed. Are you sure you have a CUDA build?")

    monkeypatch.setenv(nvtx.SWITCH, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "mark", fail)
    nvtx.load_backend.cache_clear()

    assert not nvtx.enabled()
    nvtx.load_backend.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_real_ranges_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.SWITCH, "1")

    assert nvtx.enabled()
    with nvtx.range("outer"), nvtx.range("inner"):
        nvtx.mark("here")


@pytest.mark.timeout(60)
def test_ranges_that_are_off_do_not_import_torch() -> None:
    code = (
        "import sys, profiling\n"
        "with profiling.nvtx.range('outer'): profiling.nvtx.mark('here')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == "False\n"
