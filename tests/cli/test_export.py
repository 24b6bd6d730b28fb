"""transformerlm-export: what it says on stdout and stderr, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import export
from config.export import ExportConfig
from config.io import load_config
from transformerlm.utils.errors import ConfigError


@pytest.mark.parametrize(("format", "out"), [("hf", "tiny"), ("gguf", "tiny.gguf")])
def test_a_run_is_exported(
    format: str, out: str, run_main: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    if format == "gguf":
        pytest.importorskip("gguf", reason="needs gguf: uv sync --group peers")
    words = ("--checkpoint", run_folder, "--format", format, "--out", tmp_path / out, "--dtype", "bfloat16")
    result = run_main(export.main, *words)
    assert result.code == 0, result.err
    record = json.loads(result.out)
    size = sum(path.stat().st_size for path in [tmp_path / out, *(tmp_path / out).rglob("*")] if path.is_file())
    assert record == {
        "event": "export", "path": str(tmp_path / out), "format": format, "dtype": "bfloat16",
        "architecture": "LlamaForCausalLM", "parameters": 41120, "bytes": size,
    }  # fmt: skip
    assert f"wrote {tmp_path / out}: LlamaForCausalLM, 41,120 parameters in bfloat16" in result.err
    assert {"hf": "AutoModelForCausalLM.from_pretrained", "gguf": "llama-cli -m"}[format] in result.err
    again = run_main(export.main, *words)
    assert (again.code, again.out) == (2, "")
    assert again.err.count("\n") == 1
    assert "already exists, and is not overwritten" in again.err


def test_settings_come_from_a_file(
    run_main: Callable[..., Any], run_folder: Path, tmp_path: Path, write_toml: Callable[..., Path]
) -> None:
    path = write_toml({"export": {"checkpoint": str(run_folder), "out": str(tmp_path / "out"), "dtype": "float16"}})
    result = run_main(export.main, "--config", path)
    assert result.code == 0, result.err
    assert json.loads(result.out)["dtype"] == "float16"
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("format", "out", "problem"),
    [("gguf", "model", "must end in .gguf"), ("hf", "model.gguf", "ends in .gguf, which is for --format gguf")],
)
def test_the_name_fits_the_format(format: str, out: str, problem: str) -> None:
    settings = {("export", "checkpoint"): "runs/x", ("export", "format"): format, ("export", "out"): out}
    with pytest.raises(ConfigError, match=f"command line: export.out: {problem}"):
        load_config(ExportConfig, None, settings)


def test_a_missing_checkpoint_is_one_line(run_main: Callable[..., Any], tmp_path: Path) -> None:
    result = run_main(export.main, "--checkpoint", tmp_path / "none", "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {tmp_path / 'none'}: there is no such folder; transformerlm-train makes checkpoints\n"
    assert not (tmp_path / "out").exists()
