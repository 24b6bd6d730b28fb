"""Run lm-evaluation-harness (Gao et al. 2021): its tasks, with our likelihoods and our engine.

    from transformerlm.evaluation.harness import HarnessModel, run_tasks
    model = HarnessModel("runs/stories")
    print(run_tasks(model, ["little"], Path("my_tasks")))       # or lm_eval.simple_evaluate(model=model, …)

Needs the extra `eval`. Importing this module also registers the model with the harness as `transformerlm`, with the
arguments of `HarnessModel`: `simple_evaluate(model="transformerlm", model_args="checkpoint=runs/stories")`.

Texts of tasks are encoded as plain text, as in `likelihood`: a special token spelled out in a text is not that token. A
text longer than the context is cut into the harness' own windows, which do not overlap. The results are comparable to
the harness' other models, and worse than those from the overlapping windows of `Evaluator`.
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
from transformerlm.evaluation.likelihood import encode_plain, prompt_ids, start_id
from transformerlm.evaluation.scorer import Row
from transformerlm.hparams import EvaluationHparams, SamplingHparams
from transformerlm.inference.predictor import Completion
from transformerlm.utils.errors import ConfigError, DataError, require_list

_NEW_TOKENS = 256  # default for tasks that do not set it, as in the harness' own models
_RESAMPLINGS = 1000  # bootstrap samples for standard errors without a formula


class TaskResult(NamedTuple):
    """The harness' results for a task or a group of tasks."""

    task: str
    num_questions: int | None
    """None for a group."""
    metrics: dict[str, float | None]
    """By the harness' names, such as `acc` and `acc_stderr`; with a filter, `acc.FILTER`."""


@final
class HarnessModel(LM):
    """An `Evaluator` with the harness' interface of a model."""

    def __init__(
        self,
        checkpoint: Path | str | Evaluator,
        *,
        batch_size: int | str = 16,
        stride: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        max_batch_size: int | None = None,  # noqa: ARG002 (the harness passes it to every model)
    ) -> None:
        """Load a checkpoint, or use an evaluator; `stride` is for the evaluator's own windows, not for tasks.

        Raises `ConfigError` if the batch size is not a number: the harness' "auto" is not supported.
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
        """Return for each (context, continuation) its log-likelihood, and whether greedy decoding gives it."""
        pairs: list[Any] = [request.args for request in requests]
        found = self.evaluator.continuations(pairs)
        return self._keep("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each whole text, in the harness' windows, without end-of-text.

        Raises `ConfigError` if the tokenizer has no token to begin a text with.
        """
        found = self.evaluator.log_likelihoods([self._windows(request.args[0]) for request in requests])
        return self._keep("loglikelihood_rolling", requests, found)

    def _windows(self, text: str) -> list[Row]:
        """Return windows of the context's length in which each token of the text is scored once."""
        begin = start_id(self.evaluator.tokenizer)
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
        """Return the prompt of a context, cut off at the beginning if it is too long."""
        room = self.evaluator.model.context_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"a task asks for {max_new_tokens:,} new tokens (max_gen_toks), and the model's context is "
                f"{self.evaluator.model.context_length:,}; give it a smaller number"
            )
        return Completion(context, prompt_ids(self.evaluator.tokenizer, context, max_tokens=room))

    def _keep(self, kind: str, requests: list[Instance], found: list[Any]) -> list[Any]:
        """Pass results to the harness' cache, if there is one."""
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
        return found


register_model("transformerlm")(HarnessModel)  # used as a decorator, it would hide the type


def sampling_of(settings: Mapping[str, Any], *, context_length: int) -> SamplingHparams:
    """Return a task's `generation_kwargs` as our settings. Raises `ConfigError` for unsupported settings."""
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
        raise ConfigError(f"a task's generation_kwargs {dict(settings)} are not supported: {reason}") from None


def run_tasks(model: HarnessModel, tasks: Sequence[str], folder: Path | None = None) -> list[TaskResult]:
    """Run tasks by name, from the YAML files in `folder` or, without it, the harness' own, whose data it downloads.

    The harness' output goes to stderr. Raises `ConfigError` for a missing folder and an unknown task, `DataError` for
    data that is missing or cannot be downloaded.
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
    """Return the values of a result with keys "metric,filter"; a value that the harness did not compute is None."""
    metrics: dict[str, float | None] = {}
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if comma:
            number = float(value) if isinstance(value, int | float) else None
            metrics[name if kind == "none" else f"{name}.{kind}"] = number
    return metrics
