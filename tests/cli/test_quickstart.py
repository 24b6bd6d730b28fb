"""The quick start on tiny stages of its own: what it makes, skips, continues and moves aside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import quickstart
from transformerlm.models import SwiGLU

Tables = dict[str, dict[str, Any]]


@pytest.fixture
def run_quickstart(
    workspace: Path,
    train_tables: Tables,
    write_toml: Callable[..., Path],
    run_main: Callable[..., Any],
    tmp_path: Path,
) -> Callable[..., Any]:
    """Runs the command with tiny stages; overrides go to the training's tables."""
    made = tmp_path / "made"
    source = str(workspace / "corpus.txt")
    tokenizer = {"input": {"sources": [source]}, "tokenizer": {"vocab_size": 320, "output": str(made / "tok")}}
    data: dict[str, dict[str, Any]] = {
        "input": {"sources": [source], "valid_fraction": 0.1},
        "output": {"tokenizer": str(made / "tok"), "train": str(made / "t.dat"), "valid": str(made / "v.dat")},
    }
    infer = {
        "inference": {"checkpoint": str(tmp_path / "runs/tiny"), "prompts": ["the cat"]},
        "sampling": {"max_new_tokens": 5},
    }
    train_tables["data"] = {
        "train": str(made / "t.dat"),
        "valid": str(made / "v.dat"),
        "tokenizer": str(made / "tok"),
    }

    def run(*arguments: str, shard_tokens: int = 10**8, inputs: Tables | None = None, **training: Any) -> Any:
        train_tables["training"] |= training
        data["output"]["shard_tokens"] = shard_tokens
        for table in (tokenizer, data):
            table["input"] = table["input"] | (inputs or {})
        tables = {"tokenizer": tokenizer, "data": data, "train": train_tables, "infer": infer}
        files = [(f"--quickstart.{name}", str(write_toml(value, f"{name}.toml"))) for name, value in tables.items()]
        return run_main(quickstart.main, *(word for pair in files for word in pair), *arguments)

    return run


def test_it_ends_with_stories_loss_and_a_curve(run_quickstart: Callable[..., Any], tmp_path: Path) -> None:
    done = run_quickstart()
    assert done.code == 0, done.err
    assert done.out.startswith("the cat")
    assert "validation loss" in done.err
    assert "bits per byte" in done.err
    assert str(tmp_path / "runs/tiny/loss.png") in done.err
    assert (tmp_path / "runs/tiny/loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_skips_every_stage_and_says_the_same(run_quickstart: Callable[..., Any]) -> None:
    first, second = run_quickstart(), run_quickstart()
    assert second.code == 0, second.err
    assert second.err.count("up to date") == 3
    assert second.out == first.out


def test_other_settings_train_anew_and_keep_the_old_run(run_quickstart: Callable[..., Any], tmp_path: Path) -> None:
    run_quickstart()
    done = run_quickstart(seed=1)
    assert done.code == 0, done.err
    assert done.err.count("up to date") == 2
    assert (tmp_path / "runs/tiny.old1/checkpoints").is_dir()
    assert (tmp_path / "runs/tiny/checkpoints/step_00000012").is_dir()


def test_a_changed_layer_trains_anew_and_says_why(
    run_quickstart: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_quickstart()
    monkeypatch.setattr(SwiGLU, "forward", lambda layer, x: layer.w2(layer.w1(x).relu() * layer.w3(x)))
    done = run_quickstart()
    assert done.code == 0, done.err
    assert "this checkpoint was made by other code (its logits differ by" in done.err
    assert done.err.count("up to date") == 2
    assert (tmp_path / "runs/tiny.old1/checkpoints").is_dir()
    assert run_quickstart().err.count("up to date") == 3


def test_force_runs_all_stages(run_quickstart: Callable[..., Any], tmp_path: Path) -> None:
    run_quickstart()
    done = run_quickstart("--quickstart.force")
    assert done.code == 0, done.err
    assert "up to date" not in done.err
    assert (tmp_path / "runs/tiny.old1").is_dir()


def test_a_change_of_any_shard_is_seen(run_quickstart: Callable[..., Any], tmp_path: Path) -> None:
    run_quickstart(shard_tokens=700)
    done = run_quickstart(shard_tokens=700)
    assert done.err.count("up to date") == 3
    shard = tmp_path / "made/t.00001.dat"
    for change in (lambda: shard.write_bytes(bytes(shard.stat().st_size)), shard.unlink):
        change()
        done = run_quickstart(shard_tokens=700)
        assert done.code == 0, done.err
        assert "[2/4] build the token files\n" in done.err


def test_the_format_of_the_sources_is_that_of_the_settings(
    run_quickstart: Callable[..., Any], workspace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_bytes((workspace / "corpus.txt").read_bytes())
    (folder / "b.jsonl").write_text("no JSON")
    done = run_quickstart(inputs={"sources": [str(folder)], "format": "text"})
    assert done.code == 0, done.err
