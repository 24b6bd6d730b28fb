"""`transformerlm-eval`: evaluate a checkpoint; one JSON record per result on stdout, a table on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.progress import progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command
from config.evaluate import EvaluateConfig, TextSection
from logger.records import json_line
from transformerlm.hparams import EvaluationHparams
from transformerlm.utils.errors import DataError, MissingDependencyError
from transformerlm.utils.files import require_writable, write_json

if TYPE_CHECKING:
    from transformerlm.evaluation import Evaluator, HeldOut, MultipleChoice, Question
    from transformerlm.evaluation.harness import TaskResult

EPILOG = """examples:
  transformerlm-eval --checkpoint runs/stories --data data/stories/valid.dat --out stories.json
  transformerlm-eval --checkpoint runs/stories --input.sources my_texts --evaluation.stride 64
  transformerlm-eval --checkpoint runs/stories --evaluation.tasks little --evaluation.task-path my_tasks
"""

Record = dict[str, Any]


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(EvaluateConfig, _run, prog="transformerlm-eval", epilog=EPILOG)


def _run(invocation: Invocation[EvaluateConfig]) -> int:
    config = invocation.config
    out = config.evaluation.out
    if out is not None:
        _require_new(out)
    records = []
    for record in evaluate(config):
        line = json_line(record)
        print(line, flush=True)
        _show(record)
        records.append(json.loads(line))
    if out is not None:
        write_json(out, records)
    return EXIT_OK


def evaluate(config: EvaluateConfig) -> Iterator[Record]:
    """Load the model and yield one record per result; inputs are checked first where possible."""
    asked = config.evaluation
    run_harness = _harness() if asked.tasks else None
    from transformerlm.evaluation import Evaluator, read_questions
    from transformerlm.utils.devices import set_threads

    questions = [(path, list(read_questions(path))) for path in asked.choices]
    set_threads(asked.threads)
    settings = EvaluationHparams(**{key: getattr(asked, key) for key in EvaluationHparams.model_fields})
    evaluator = Evaluator.from_checkpoint(asked.checkpoint, settings, device=asked.device, dtype=asked.dtype)
    common = _params(config, evaluator)
    for path in asked.data:
        yield _held_out_record(common | {"params.data": str(path)}, _on_token_file(evaluator, path))
    if config.input.sources:
        params = {"params.sources": list(config.input.sources)}
        yield _held_out_record(common | params, _on_texts(evaluator, config.input))
    for path, listed in questions:
        yield _choices_record(common | {"params.choices": str(path)}, _on_questions(evaluator, path, listed))
    if run_harness is not None:
        for result in run_harness(evaluator, asked.tasks, asked.task_path):
            yield _task_record(common | {"params.task": result.task}, result)


def _on_token_file(evaluator: "Evaluator", path: Path) -> "HeldOut":
    from transformerlm.token_files.index import read_info

    total = max(1, read_info(path).num_tokens)
    with progress_bar(path.name, enabled=sys.stderr.isatty()) as update:
        return evaluator.token_file(path, lambda done: update(done / total, f"{done:,} tokens"))


def _on_texts(evaluator: "Evaluator", settings: TextSection) -> "HeldOut":
    from cli.sources import find_sources, reading_of, say_left_out
    from databuilder.pieces import TextCounts
    from databuilder.texts import read_texts

    sources = find_sources(settings.sources, format=settings.format)
    total = max(1, sum(source.num_bytes for source in sources))
    counts = TextCounts()
    with progress_bar("text", enabled=sys.stderr.isatty()) as update:
        words = ""

        def on_scored(done: int) -> None:
            nonlocal words
            words = f"{done:,} tokens"

        texts = read_texts(sources, reading_of(settings), counts, lambda read: update(read / total, words), say)
        found = evaluator.texts(texts, on_scored)
    say_left_out(counts.to_json())
    return found


def _on_questions(evaluator: "Evaluator", path: Path, questions: "list[Question]") -> "MultipleChoice":
    total = len(questions)
    with progress_bar(path.name, enabled=sys.stderr.isatty()) as update:
        return evaluator.choices(questions, lambda done: update(done / total, f"{done:,} questions"))


def _harness() -> "Callable[[Evaluator, Sequence[str], Path | None], list[TaskResult]]":
    """Return the function that runs the harness' tasks; raise an error if the extra is not installed."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars only on terminals
    try:
        from transformerlm.evaluation.harness import HarnessModel, run_tasks
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("transformerlm"):
            raise
        package = error.name.partition(".")[0]
        raise MissingDependencyError(
            f"evaluation.tasks needs {package}: uv sync --extra eval, or pip install 'transformerlm[eval]'"
        ) from None

    def run(evaluator: "Evaluator", tasks: Sequence[str], folder: Path | None) -> "list[TaskResult]":
        return run_tasks(HarnessModel(evaluator), tasks, folder)

    return run


def _params(config: EvaluateConfig, evaluator: "Evaluator") -> Record:
    from transformerlm.checkpoint.fingerprint import code_version
    from transformerlm.utils.dtypes import dtype_name

    weight = evaluator.model.token_embeddings.weight
    return {f"code.{key}": value for key, value in code_version().items()} | {
        "params.checkpoint": str(config.evaluation.checkpoint),
        "params.context_length": evaluator.context_length,
        "params.stride": evaluator.stride,
        "params.windows": evaluator.windows,
        "params.batch_size": evaluator.batch_size,
        "params.device": weight.device.type,
        "params.dtype": dtype_name(weight.dtype),
    }


def _held_out_record(params: Record, found: "HeldOut") -> Record:
    return {"event": "held_out"} | params | {
        "metrics.loss": found.loss,
        "metrics.perplexity": found.perplexity,
        "metrics.bits_per_byte": found.bits_per_byte,
        "metrics.text_bits_per_byte": found.text_bits_per_byte,
        "metrics.tokens": found.num_tokens,
        "metrics.bytes": found.num_bytes,
        "metrics.documents": found.num_documents,
        "metrics.windows": found.num_windows,
    }  # fmt: skip


def _choices_record(params: Record, found: "MultipleChoice") -> Record:
    return {"event": "multiple_choice"} | params | {
        "metrics.accuracy": found.accuracy,
        "metrics.accuracy_stderr": found.standard_error(found.accuracy),
        "metrics.normalized_accuracy": found.normalized_accuracy,
        "metrics.normalized_accuracy_stderr": found.standard_error(found.normalized_accuracy),
        "metrics.questions": found.num_questions,
        "metrics.truncated_questions": found.num_truncated,
    }  # fmt: skip


def _task_record(params: Record, found: "TaskResult") -> Record:
    metrics = {f"metrics.{name}": value for name, value in found.metrics.items()}
    return {"event": "task"} | params | metrics | {"metrics.questions": found.num_questions}


def _require_new(out: Path) -> None:
    """Raise `DataError` unless the results file does not exist and can be written."""
    if out.exists():
        raise DataError(f"{out}: is there already; remove it, or choose another --out")
    require_writable(out.parent, "--out")


def _show(record: Record) -> None:
    """Show a result as a table on stderr."""
    from rich import box  # imported here, since it would double a command's start-up time
    from rich.console import Console
    from rich.table import Table

    of = next(str(record[key]) for key in _SUBJECTS if key in record)
    table = Table(title=of, box=box.SIMPLE, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in record.items():
        group, _, name = key.partition(".")
        if group == "metrics":
            table.add_row(name.replace("_", " "), _shown(value))
    if record["event"] == "held_out":
        table.caption = f"every token once, in windows over {record['params.windows']} that overlap by the stride"
    Console(stderr=True).print(table)


_SUBJECTS = ("params.data", "params.sources", "params.choices", "params.task")


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
