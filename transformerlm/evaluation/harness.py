"""lm-evaluation-harness (Gao et al. 2021) on a model of ours: its tasks, our likelihoods and our engine.

    from transformerlm.evaluation.harness import HarnessModel, run_tasks
    model = HarnessModel("runs/stories")
    print(run_tasks(model, ["little"], Path("my_tasks")))       # or lm_eval.simple_evaluate(model=model, …)

Needs the extra `eval`. Once this module is imported the harness knows the model by the name `transformerlm`, too, with
the arguments of `HarnessModel`: `simple_evaluate(model="transformerlm", model_args="checkpoint=runs/stories")`.

Texts of tasks are plain text, as in `likelihood`: a special token that is written out in one is not that token. A text
longer than the context is cut into the harness' own windows, which do not overlap: the same numbers as from the
harness' other models, and worse ones than the `Evaluator` finds with its overlapping windows.
"""

import contextlib
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from transformerlm.evaluation.evaluator import Evaluator
from transformerlm.evaluation.likelihood import beginning_id, encode_plain, prompt_ids
from transformerlm.evaluation.scorer import Row
from transformerlm.hparams import EvaluationHparams, SamplingHparams
from transformerlm.inference.predictor import Completion
from transformerlm.utils.errors import ConfigError, DataError, require_list

_NEW_TOKENS = 256  # where a task does not say how many: as in the harness' own models
_RESAMPLINGS = 1000  # of the standard errors that have no formula


class TaskResult(NamedTuple):
    """What the harness found in a task, or in a group of them."""

    task: str
    num_questions: int | None
    """None for a group."""
    metrics: dict[str, float | None]
    """By the harness' names, `acc` and `acc_stderr`; one of another filter than none is `acc.FILTER`."""


@final
class HarnessModel(LM):
    """An `Evaluator` as the harness wants a model."""

    def __init__(
        self,
        checkpoint: Path | str | Evaluator,
        *,
        batch_size: int | str = 16,
        stride: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        max_batch_size: int | None = None,  # noqa: ARG002 (the harness gives it to every model)
    ) -> None:
        """Load a checkpoint, or take an evaluator; `stride` is for the evaluator's own windows, which no task uses.

        Raises `ConfigError` for a batch size that is no number: the harness' "auto" finds one by trying.
        """
        super().__init__()
        if isinstance(checkpoint, Evaluator):
            self.evaluator = checkpoint
        else:
            if not f"{batch_size}".isdecimal():
                raise ConfigError(f"batch_size must be a number of rows (got {batch_size!r}); 16 suits most machines")
            settings = EvaluationHparams(stride=stride, batch_size=int(batch_size))
            self.evaluator = Evaluator.from_checkpoint(checkpoint, settings, device=device or "auto", dtype=dtype)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood, and whether greedy decoding would give it."""
        pairs: list[Any] = [request.args for request in requests]
        found = self.evaluator.continuations(pairs)
        return self._keep("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each whole text, in the harness' windows, without the end of text.

        Raises `ConfigError` if the tokenizer has no token to begin a text with.
        """
        found = self.evaluator.log_likelihoods([self._windows(request.args[0]) for request in requests])
        return self._keep("loglikelihood_rolling", requests, found)

    def _windows(self, text: str) -> list[Row]:
        """Return windows of the context's length in which each token of the text is scored once."""
        begin = beginning_id(self.evaluator.tokenizer)
        if begin is None:
            raise ConfigError("the tokenizer has no beginning-of-text or end-of-text token to begin a text with")
        ids = encode_plain(self.evaluator.tokenizer, text)
        windows = get_rolling_token_windows(ids, begin, max_seq_len=self.evaluator.context_length, context_len=1)
        return [
            Row(np.array(context + scored, dtype=np.int64), first_scored=len(context) - 1)
            for context, scored in map(make_disjoint_window, windows)
        ]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return a continuation of each (context, settings), greedy unless the settings have a temperature."""
        texts: list[str] = [""] * len(requests)
        groups: dict[SamplingHparams, list[int]] = {}
        for number, request in enumerate(requests):
            arguments: Any = request.args
            sampling = sampling_of(arguments[1], context_length=self.evaluator.model.context_length)
            groups.setdefault(sampling, []).append(number)
        predictor = self.evaluator.predictor
        for sampling, numbers in groups.items():
            prompts = [self._prompt(requests[number].args[0], sampling.max_new_tokens) for number in numbers]
            for _ in predictor.stream(prompts, sampling):
                pass
            for number, prompt in zip(numbers, prompts, strict=True):
                texts[number] = prompt.text
        return self._keep("generate_until", requests, texts)

    def _prompt(self, context: str, max_new_tokens: int) -> Completion:
        """Return what is to be continued: of a context that is too long, the end."""
        room = self.evaluator.model.context_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"a task asks for {max_new_tokens:,} new tokens (max_gen_toks), and the model's context is "
                f"{self.evaluator.model.context_length:,}; give it a smaller number"
            )
        return Completion(context, prompt_ids(self.evaluator.tokenizer, context, most=room))

    def _keep(self, kind: str, requests: list[Instance], found: list[Any]) -> list[Any]:
        """Give results to the harness' cache, if it has one."""
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return found


register_model("transformerlm")(HarnessModel)  # as a decorator it would hide the type


def sampling_of(settings: Mapping[str, Any], *, context_length: int) -> SamplingHparams:
    """Return what a task's `generation_kwargs` say, in our terms. Raises `ConfigError` for what we do not have."""
    known = dict(settings)
    until = known.pop("until", None) or ()
    samples = known.pop("do_sample", None)
    temperature = float(known.pop("temperature", 1.0 if samples else 0.0))
    values = {
        "stop": tuple(filter(None, (until,) if isinstance(until, str) else until)),
        "max_new_tokens": known.pop("max_gen_toks", min(_NEW_TOKENS, context_length // 2)),
        "temperature": 0.0 if samples is False else temperature,
        "top_p": 1.0,
        **known,
    }
    try:
        return SamplingHparams.model_validate(values)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"a task's generation_kwargs {dict(settings)} cannot be followed: {reason}") from None


def run_tasks(model: HarnessModel, tasks: Sequence[str], folder: Path | None = None) -> list[TaskResult]:
    """Run tasks by name: those of the YAML files in `folder`, or else the harness' own, whose data it fetches.

    What the harness prints goes to stderr. Raises `ConfigError` for a folder that is not there and for an
    unknown task, `DataError` for data that is not there or cannot be fetched.
    """
    require_list("tasks", tasks)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"evaluation.task_path: there is no folder {folder}; give one with the YAML files of tasks")
    with contextlib.redirect_stdout(sys.stderr):
        manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
        for task in tasks:
            if task not in manager.all_tasks:
                near = difflib.get_close_matches(task, manager.all_tasks, n=1) or manager.all_tasks[:10]
                raise ConfigError(
                    f"evaluation.tasks: there is no task {task!r}; known are: {', '.join(near) or 'none'}"
                )
        try:
            done: Any = simple_evaluate(
                model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=_RESAMPLINGS, log_samples=False
            )
        except OSError as error:
            first_line = f"{error}".strip().partition("\n")[0]
            raise DataError(f"evaluation.tasks: the data of {', '.join(tasks)} cannot be read: {first_line}") from None
    counts = done.get("n-samples", {})
    return [
        TaskResult(name, counts.get(name, {}).get("effective"), _metrics(found))
        for name, found in done["results"].items()
    ]


def _metrics(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a result, whose keys are "metric,filter"; what the harness has not found out is None."""
    metrics: dict[str, float | None] = {}
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if comma:
            number = float(value) if isinstance(value, int | float) else None
            metrics[name if kind == "none" else f"{name}.{kind}"] = number
    return metrics
