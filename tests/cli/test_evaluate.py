"""`transformerlm-eval`: a line of JSON and a table for each result, and what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import evaluate
from databuilder import build_dataset
from transformerlm.checkpoint.fingerprint import code_version
from transformerlm.evaluation import Evaluator, read_questions
from transformerlm.hparams import EvaluationHparams
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

Command = Callable[..., Any]


@pytest.fixture
def run(run_main: Command, run_folder: Path) -> Command:
    """Runs the command on the trained run with the given words."""
    return lambda *words: run_main(evaluate.main, "--checkpoint", run_folder, *words)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"context": "The", "choices": [" cat", " 你好 " * 3], "answer": 0}] * 3
    rows.append({"context": "a " * 90, "choices": ["dog", "went home"], "answer": 1})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_all_results_as_lines_a_file_and_tables(
    run: Command, run_folder: Path, workspace: Path, questions: Path, tmp_path: Path, documents: list[str]
) -> None:
    done = run(
        *("--data", workspace / "valid.dat", "--input.sources", workspace / "corpus.txt"),
        *("--evaluation.choices", questions, "--evaluation.stride", 24, "--evaluation.batch_size", 5),
        *("--out", tmp_path / "new" / "results.json", "--evaluation.device", "cpu"),
    )
    assert done.code == 0, done.err
    held_out, text, choices = found = records(done.out)
    assert json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8")) == found
    settings = EvaluationHparams(stride=24, batch_size=5)
    ours = Evaluator.from_checkpoint(run_folder, settings, device="cpu")
    expected = ours.token_file(workspace / "valid.dat")
    assert held_out == {
        "event": "held_out",
        **{f"code.{key}": value for key, value in code_version().items()},
        "params.checkpoint": str(run_folder),
        "params.context_length": 32,
        "params.stride": 24,
        "params.windows": "documents",
        "params.batch_size": 5,
        "params.device": "cpu",
        "params.dtype": "float32",
        "params.data": str(workspace / "valid.dat"),
        "metrics.loss": expected.loss,
        "metrics.perplexity": expected.perplexity,
        "metrics.bits_per_byte": expected.bits_per_byte,
        "metrics.text_bits_per_byte": expected.text_bits_per_byte,
        "metrics.tokens": expected.num_tokens,
        "metrics.bytes": expected.num_bytes,
        "metrics.documents": expected.num_documents,
        "metrics.windows": expected.num_windows,
    }
    assert (text["metrics.documents"], text["params.sources"]) == (300, [str(workspace / "corpus.txt")])
    assert text["metrics.bytes"] == sum(len(document.encode("utf-8")) for document in documents)
    assert text["metrics.loss"] == ours.texts(documents).loss
    counted = ours.choices(list(read_questions(questions)))
    assert choices["metrics.accuracy"] == counted.accuracy
    assert choices["metrics.normalized_accuracy"] == counted.normalized_accuracy
    assert choices["metrics.accuracy_stderr"] == counted.standard_error(counted.accuracy)
    assert (choices["metrics.questions"], choices["metrics.truncated_questions"]) == (4, 1)
    assert f"{expected.bits_per_byte:.4f}" in done.err
    assert "truncated questions" in done.err


def test_text_in_json_lines(run: Command, tmp_path: Path, documents: list[str]) -> None:
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"story": text}) for text in documents[:5]), "utf-8")
    done = run("--input.sources", tmp_path / "few.jsonl", "--input.text-field", "story")
    assert done.code == 0, done.err
    [record] = records(done.out)
    assert record["metrics.documents"] == 5
    assert record["metrics.bytes"] == sum(len(text.encode("utf-8")) for text in documents[:5])


def test_a_long_document_is_one(tmp_path: Path) -> None:
    from databuilder.pieces import Reading, TextCounts
    from databuilder.sources import resolve_sources
    from databuilder.texts import read_texts

    long = b"The cat sat near the house. " * 100_000 + b"."
    (tmp_path / "long.txt").write_bytes(b"\n<|endoftext|>\n".join((b"One.", long, b"", b"Two.")))
    read: list[int] = []
    texts = list(read_texts(resolve_sources([tmp_path / "long.txt"]), Reading(), TextCounts(), read.append))
    assert texts == [b"One.", long, b"Two."]
    assert read[-1] == (tmp_path / "long.txt").stat().st_size


def test_the_harness_by_name(run: Command, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: uv sync --group peers")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = [{"text": "The cat sat near the house."}, {"text": "A big red dog"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "little.yaml").write_text(
        f"task: little\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        f"  cache_dir: {tmp_path / 'cache'}\ntest_split: test\noutput_type: loglikelihood_rolling\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n',
        encoding="utf-8",
    )
    done = run("--evaluation.tasks", "little", "--evaluation.task-path", tmp_path)
    assert done.code == 0, done.err
    [record] = records(done.out)
    ours = Evaluator.from_checkpoint(run_folder).texts(row["text"] for row in rows)
    assert ours.num_windows == 2  # longer texts are cut into other windows by the harness
    assert (record["event"], record["params.task"], record["metrics.questions"]) == ("task", "little", 2)
    assert record["metrics.bits_per_byte"] == pytest.approx(ours.text_bits_per_byte, rel=1e-6)


def test_without_the_harness_it_says_what_to_install(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "transformerlm.evaluation.harness", raising=False)
    done = run("--evaluation.tasks", "little")
    assert (done.code, done.out) == (2, "")
    assert "evaluation.tasks needs lm_eval: uv sync --extra eval" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "evaluation.data: must be given, or evaluation.choices, evaluation.tasks or input.sources"),
        (("--data", "x", "--evaluation.task-path", "x"), "evaluation.tasks: must be given, since task_path is"),
        (("--data", "none.dat"), "none.dat: there is no such token file"),
        (("--data", "x", "--evaluation.stride", "40"), "evaluation.stride: must be at most 32, the context"),
        (("--data", "x", "--evaluation.stride", "0"), "evaluation.stride: should be greater than 0"),
        (
            ("--data", "x", "--evaluation.stride", "9", "--evaluation.context-length", "8"),
            "evaluation.stride: must not exceed context_length = 8",
        ),
        (("--data", "x", "--evaluation.windows", "all"), "evaluation.windows: should be 'documents' or 'stream'"),
        (("--input.sources", "none.txt"), "none.txt: there is no such file"),
        (("--evaluation.choices", "none.jsonl"), "none.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line(run: Command, words: tuple[str, ...], message: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    [line] = done.err.splitlines()
    assert message in line


def test_data_of_another_tokenizer_is_refused(run: Command, tmp_path: Path, byte_tokens: Path) -> None:
    done = run("--data", byte_tokens, "--out", tmp_path / "out.json")
    assert (done.code, done.out) == (2, "")
    assert "was made by another tokenizer than the checkpoint's" in done.err
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def byte_tokens(workspace: Path, tmp_path: Path) -> Path:
    tokenizer = Tokenizer({number: bytes([number]) for number in range(256)}, [], [END_OF_TEXT])
    build_dataset([workspace / "corpus.txt"], tokenizer, tmp_path / "bytes.dat")
    return tmp_path / "bytes.dat"


def test_nothing_is_overwritten(run: Command, tmp_path: Path, questions: Path) -> None:
    (tmp_path / "old.json").write_text("[1]", encoding="utf-8")
    done = run("--evaluation.choices", questions, "--out", tmp_path / "old.json")
    assert (done.code, done.out) == (2, "")
    assert "old.json: is there already; remove it, or choose another --out" in done.err
    assert (tmp_path / "old.json").read_text(encoding="utf-8") == "[1]"


def test_a_checkpoint_trained_with_masks_is_known(run_folder: Path, tmp_path: Path, workspace: Path) -> None:
    from transformerlm.training import Checkpoint, CheckpointStore

    checkpoint = Checkpoint.open(run_folder)
    plain = Evaluator.from_checkpoint(checkpoint.path)
    assert not plain.mask_documents
    text = (checkpoint.path / "config.toml").read_text(encoding="utf-8").replace("mask_documents = false", "")
    text = text.replace("[data]", "[data]\nmask_documents = true")
    store = CheckpointStore(tmp_path, keep_last=1, config_toml=text, tokenizer=workspace / "tokenizer")
    store.save(model=checkpoint.model_state(), optimizer={}, state={"step": 1})
    masked = Evaluator.from_checkpoint(tmp_path)
    assert masked.mask_documents
    assert masked.token_file(workspace / "valid.dat").loss != plain.token_file(workspace / "valid.dat").loss
