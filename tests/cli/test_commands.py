"""The four commands on a tiny text, from the first to the last, and what they say when something is missing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import infer, make_data, train, train_tokenizer
from config.io import load_config
from config.train import TrainConfig
from transformerlm.token_files.index import read_info
from transformerlm.tokenizer import END_OF_TEXT
from transformerlm.training import Checkpoint
from transformerlm.utils.files import sha256_file

ROOT = Path(__file__).parents[2]
Tables = dict[str, dict[str, Any]]


def refuse_nan(word: str) -> float:
    raise AssertionError(f"{word} as a bare word is not JSON")


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse_nan) for line in text.splitlines()]


def test_from_text_to_text(run_main: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    shutil.copy(workspace / "corpus.txt", tmp_path)
    done = run_main(
        train_tokenizer.main,
        *("--input.sources", tmp_path / "corpus.txt", "--tokenizer.vocab-size", 300),
        *("--tokenizer.output", tmp_path / "tok", "--tokenizer.workers", 1),
    )
    assert (done.code, done.out) == (0, "")
    assert "wrote" in done.err
    done = run_main(
        make_data.main,
        *("--input.sources", tmp_path / "corpus.txt", "--input.valid-fraction", 0.1),
        *("--output.tokenizer", tmp_path / "tok"),
        *("--output.train", tmp_path / "t.dat", "--output.valid", tmp_path / "v.dat"),
    )
    assert (done.code, done.out) == (0, "")
    assert read_info(tmp_path / "t.dat").vocab_size == 300
    done = run_main(
        train.main,
        *("--data.train", tmp_path / "t.dat", "--data.valid", tmp_path / "v.dat", "--data.tokenizer", tmp_path / "tok"),
        *("--model.context-length", 32, "--model.d-model", 32, "--model.num-heads", 2, "--model.num-layers", 1),
        *("--schedule.warmup-iters", 1, "--training.steps", 3, "--training.batch-size", 2),
        *("--training.runs-dir", tmp_path / "runs", "--validation.windows", 2),
    )
    assert done.code == 0
    assert {record["event"] for record in records(done.out)} >= {"train_step", "validation", "checkpoint", "train_end"}
    assert (tmp_path / "runs/run/loss.png").stat().st_size > 1000
    done = run_main(infer.main, "--checkpoint", tmp_path / "runs/run", "--prompt", "The cat", "--sampling.seed", 3)
    assert done.code == 0
    assert done.out.startswith("The cat")


def test_training_writes_json_lines_and_the_run_folder_keeps_them(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, tmp_path: Path
) -> None:
    train_tables["logging"] |= {"activation_norm_interval": 4, "weight_norm_interval": 6}
    done = run_main(train.main, "--config", write_toml(train_tables))
    assert done.code == 0
    seen = records(done.out)
    run_dir = tmp_path / "runs/tiny"
    kept = records((run_dir / "metrics.jsonl").read_text(encoding="utf-8"))
    assert [record["event"] for record in kept] == [record["event"] for record in seen]
    steps = [record for record in seen if record["event"] == "train_step"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    for record in steps:
        assert record.keys() >= {"metrics.loss", "metrics.lr", "metrics.grad_l2_norm", "metrics.tokens_per_second"}
        assert ("metrics.activation_norm.layers.0" in record) == (record["step"] % 4 == 0)
        assert ("metrics.weight_norm.lm_head.weight" in record) == (record["step"] % 6 == 0)
    assert [record["step"] for record in seen if record["event"] == "validation"] == [6, 12]
    assert [record["step"] for record in seen if record["event"] == "checkpoint"] == [6, 12]
    assert seen[-1] == {**seen[-1], "event": "train_end", "step": 12, "finished": True}
    resolved = load_config(TrainConfig, run_dir / "config.toml")
    assert resolved.model.vocab_size == 320
    assert (run_dir / "checkpoints/step_00000012/config.toml").read_bytes() == (run_dir / "config.toml").read_bytes()


def test_several_backends_and_none(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, tmp_path: Path
) -> None:
    train_tables["training"]["steps"] = 2
    train_tables["logging"]["backend"] = ["console", "noop"]
    assert records(run_main(train.main, "--config", write_toml(train_tables)).out)
    train_tables["logging"] |= {"backend": "noop", "run_name": "quiet"}
    done = run_main(train.main, "--config", write_toml(train_tables))
    assert (done.code, done.out) == (0, "")
    assert records((tmp_path / "runs/quiet/metrics.jsonl").read_text(encoding="utf-8"))


def test_a_loss_that_is_not_finite_is_skipped_reported_and_drawn(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformerlm.fast import chunked_loss

    exact, calls = chunked_loss.linear_cross_entropy, []

    def spoiled(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        return exact(*args, **keywords) * (math.nan if len(calls) in (2, 3) else 1.0)

    monkeypatch.setattr(chunked_loss, "linear_cross_entropy", spoiled)
    done = run_main(train.main, "--config", write_toml(train_tables), "--training.max-nonfinite-steps", 3)
    assert done.code == 0
    seen = records(done.out)
    assert [record["step"] for record in seen if record["event"] == "skipped_step"] == [2, 3]
    assert [record["metrics.loss"] for record in seen if record["event"] == "train_step"][1:3] == ["NaN", "NaN"]
    assert "step 2: skipped" in done.err

    calls.clear()
    words = ("--training.max-nonfinite-steps", 2, "--logging.run-name", "diverged")
    done = run_main(train.main, "--config", write_toml(train_tables), *words)
    assert done.code == 2
    assert "error: step 3: loss or gradient was not finite 2 times in a row" in done.err


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, tmp_path: Path
) -> None:
    path = write_toml(train_tables)
    run_main(train.main, "--config", path)
    weights = tmp_path / "runs/tiny/checkpoints/step_00000012/model.safetensors"
    before = sha256_file(weights)
    done = run_main(train.main, "--config", path)
    assert done.code == 0
    assert done.out == ""
    assert "already trained to step 12" in done.err
    assert sha256_file(weights) == before
    done = run_main(train.main, "--config", path, "--training.steps", 14)
    assert [record["step"] for record in records(done.out) if record["event"] == "train_step"] == [13, 14]
    assert "continuing after step 12" in done.err


def test_a_used_run_folder_is_refused_where_it_does_not_fit(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, tmp_path: Path
) -> None:
    path = write_toml(train_tables)
    run_main(train.main, "--config", path)
    files = {file: sha256_file(file) for file in (tmp_path / "runs").rglob("*") if file.is_file()}

    done = run_main(train.main, "--config", path, "--training.resume", "never")
    assert (done.code, done.out) == (2, "")
    assert "holds checkpoints already; choose another logging.run_name" in done.err

    done = run_main(train.main, "--config", path, "--model.d-ff", 128, "--training.seed", 9)
    assert (done.code, done.out) == (2, "")
    assert "is of another run: seed was 0 and is 9; model.d_ff was 64 and is 128; choose another" in done.err
    assert len(done.err.splitlines()) == 1
    assert {file: sha256_file(file) for file in (tmp_path / "runs").rglob("*") if file.is_file()} == files


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data.train", "none.dat"), "there is no such token file; make it with transformerlm-make-data"),
        (("--data.tokenizer", "none"), "transformerlm-train-tokenizer"),
        (("--model.context-length", 100_000), "use more text or a smaller model.context_length"),
        (("--model.vocab-size", 300), "config.toml: model.vocab_size: must be at least 320, the vocabulary of"),
        (("--training.device", "cuda"), "device 'cuda' is not available here"),
    ],
)
def test_training_without_its_inputs_creates_nothing(
    words: tuple[object, ...],
    expected: str,
    run_main: Callable[..., Any],
    write_toml: Callable[..., Path],
    train_tables: Tables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run_main(train.main, "--config", write_toml(train_tables), *words)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_training_refuses_another_tokenizers_data(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables, workspace: Path, tmp_path: Path
) -> None:
    words = ("--input.sources", workspace / "corpus.txt", "--tokenizer.vocab-size", 290, "--tokenizer.workers", 1)
    run_main(train_tokenizer.main, *words, "--tokenizer.output", tmp_path / "other")
    done = run_main(train.main, "--config", write_toml(train_tables), "--data.tokenizer", tmp_path / "other")
    assert done.code == 2
    assert "was made by another tokenizer than" in done.err


def test_data_and_tokenizer_without_their_inputs(run_main: Callable[..., Any], workspace: Path, tmp_path: Path) -> None:
    output = ("--output.tokenizer", tmp_path / "none", "--output.train", tmp_path / "t.dat")
    done = run_main(make_data.main, "--input.sources", workspace / "corpus.txt", *output)
    assert done.code == 2
    assert "transformerlm-train-tokenizer" in done.err
    output = ("--output.tokenizer", workspace / "tokenizer", "--output.train", tmp_path / "t.dat")
    done = run_main(make_data.main, "--input.sources", tmp_path / "none.txt", *output)
    assert (done.code, "there is no such file, folder or match" in done.err) == (2, True)
    done = run_main(train_tokenizer.main, "--input.sources", tmp_path / "*.txt", "--tokenizer.output", tmp_path / "t")
    assert (done.code, "there is no such file, folder or match" in done.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_on_the_command_line_gives_text(run_main: Callable[..., Any], run_folder: Path) -> None:
    words = ("--checkpoint", run_folder, "--sampling.max-new-tokens", 5, "--sampling.temperature", 0)
    done = run_main(infer.main, *words, "--prompt", "The cat")
    assert done.code == 0
    assert done.out.startswith("The cat")
    assert done.out.endswith("\n")
    assert "[5 tokens" in done.err
    again = run_main(infer.main, *words, "--prompt", "The cat")
    assert again.out == done.out
    empty = run_main(infer.main, *words, "--prompt", "")
    assert (empty.code, empty.out != "\n") == (0, True)
    two = run_main(infer.main, *words, "--prompt", "The cat", "--prompt", "A dog")
    assert two.out.startswith(done.out + "\nA dog")


def test_prompts_of_a_configuration_give_json_lines(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], run_folder: Path
) -> None:
    tables = {
        "inference": {"checkpoint": str(run_folder), "prompts": ["The cat", "", "A big red dog"]},
        "sampling": {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3},
    }
    done = run_main(infer.main, "--config", write_toml(tables))
    assert done.code == 0
    seen = records(done.out)
    assert [record["text.prompt"] for record in seen] == ["The cat", "", "A big red dog"]
    for record in seen:
        assert (record["params.temperature"], record["params.p"], record["params.top_k"]) == (0.5, 0.9, 7)
        assert record["params.eos_token_id"] == 319
        assert record["metrics.latency_ms"] > 0
        assert record["metrics.output_tokens"] <= 4
        assert isinstance(record["text.output"], str)
        assert record["text.finish_reason"] in ("max_new_tokens", "end_of_text")


def test_inference_says_what_is_missing(run_main: Callable[..., Any], run_folder: Path, tmp_path: Path) -> None:
    done = run_main(infer.main, "--checkpoint", tmp_path / "none", "--prompt", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {tmp_path / 'none'}: there is no such folder; transformerlm-train makes checkpoints\n"
    done = run_main(infer.main, "--checkpoint", run_folder)
    assert (done.code, "give --prompt" in done.err) == (2, True)
    done = run_main(infer.main, "--prompt", "x")
    assert (done.code, "inference.checkpoint: is missing" in done.err) == (2, True)


def test_a_prompt_that_is_too_long_is_one_line(run_main: Callable[..., Any], run_folder: Path) -> None:
    done = run_main(infer.main, "--checkpoint", run_folder, "--prompt", "cat " * 100)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert "the model's context 32; shorten the prompt" in done.err


def test_inference_needs_the_checkpoint_folder_and_nothing_else(
    run_main: Callable[..., Any], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Checkpoint.open(run_folder).path
    shutil.copytree(newest, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    done = run_main(infer.main, "--checkpoint", "moved", "--prompt", END_OF_TEXT, "--sampling.max-new-tokens", 2)
    assert done.code == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_the_same_command_continues(
    number: signal.Signals, code: int, write_toml: Callable[..., Path], train_tables: Tables, tmp_path: Path
) -> None:
    train_tables["training"]["steps"] = 150
    train_tables["checkpoint"]["interval"] = 1000
    command = [sys.executable, "-m", "cli.train", "--config", str(write_toml(train_tables))]
    settings: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
        assert process.stdout is not None
        first = ""
        while '"train_step"' not in first:
            line = process.stdout.readline()
            assert line, "it ended before its first step"
            first += line
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "the same command continues" in err
    seen = records(first + out)
    stopped = seen[-1]["step"]
    assert seen[-1]["finished"] is False
    assert 1 <= stopped < 150
    assert Checkpoint.open(tmp_path / "runs/tiny").step == stopped

    again = subprocess.run(command, capture_output=True, timeout=120, check=True, **settings)
    steps = [record["step"] for record in records(again.stdout) if record["event"] == "train_step"]
    assert steps == list(range(stopped + 1, 151))
    kept = records((tmp_path / "runs/tiny/metrics.jsonl").read_text(encoding="utf-8"))
    assert [record["step"] for record in kept if record["event"] == "train_step"] == list(range(1, 151))


@pytest.mark.slow
def test_compiled_steps_are_announced_and_write_the_same(run_main: Callable[..., Any], run_folder: Path) -> None:
    words = ("--checkpoint", run_folder, "--prompt", "The cat", "--sampling.temperature", 0)
    plain = run_main(infer.main, *words)
    compiled = run_main(infer.main, *words, "--inference.compile", "true")
    assert compiled.code == 0
    assert compiled.out == plain.out
    assert compiled.err.startswith("compiling the decoding steps: up to a minute")


def test_a_run_that_collapses_ends_as_one_that_diverges(
    run_main: Callable[..., Any], write_toml: Callable[..., Path], train_tables: Tables
) -> None:
    rates = ("--schedule.max-learning-rate", 100, "--schedule.min-learning-rate", 10)
    done = run_main(train.main, "--config", write_toml(train_tables), *rates, "--training.steps", 40)
    assert done.code == 2
    assert "the model has collapsed" in done.err or "was not finite" in done.err
    assert "lower schedule.max_learning_rate" in done.err
    assert "train_end" not in done.out
