"""Multiple choice: of several texts that may follow a context, the model holds one the likeliest.

By the sum of log-likelihoods a short answer wins easily, since each token costs something. So there are two counts, as
in lm-evaluation-harness: the plain one, and one in which the log-likelihood of an answer is divided by its length. That
is counted in bytes of UTF-8, not tokens, since they are the same for every tokenizer, so that models are compared by
the same rule (the harness calls this `acc_bytes`; its `acc_norm` counts characters, the same in ASCII).
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformerlm.utils.errors import DataError, require_list

MOST_CHOICES = 1000
"""Of one question; a limit for files that are not what they should be."""
MOST_LINE_BYTES = 1 << 24
"""Of one question, for the same reason."""


@dataclass(frozen=True)
class Question:
    """A context, what may follow it (as it stands: a blank between them is part of either), and the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int
    """Number of the right one, counted from 0."""
    where: str = ""
    """File and line, for errors."""

    def __post_init__(self) -> None:
        require_list("choices", self.choices)


@dataclass(frozen=True)
class MultipleChoice:
    """How often a model was right."""

    num_questions: int
    num_correct: int
    """By the sum of log-likelihoods; of equal ones the first counts."""
    num_correct_by_bytes: int
    """By log-likelihood a byte."""
    num_truncated: int
    """Questions whose context was too long, so that its beginning was left out."""

    @property
    def accuracy(self) -> float:
        """Share of questions answered right by the sum of log-likelihoods."""
        return self.num_correct / self.num_questions

    @property
    def normalized_accuracy(self) -> float:
        """Share of questions answered right by log-likelihood a byte."""
        return self.num_correct_by_bytes / self.num_questions

    def standard_error(self, accuracy: float) -> float | None:
        """Return that of an accuracy, as of a mean of n independent ones and zeros: √(a (1 − a) / (n − 1))."""
        if self.num_questions < 2:
            return None
        return math.sqrt(accuracy * (1 - accuracy) / (self.num_questions - 1))


def count_right(answers: Iterable[tuple[Question, list[float], int]]) -> MultipleChoice:
    """Count how often the model was right, of questions, log-likelihoods of their choices, and ids left out."""
    total = right = right_by_bytes = truncated = 0
    for question, likelihoods, num_dropped in answers:
        by_bytes = [
            likelihood / len(choice.encode("utf-8"))
            for likelihood, choice in zip(likelihoods, question.choices, strict=True)
        ]
        total += 1
        right += _is_best(question.answer, likelihoods)
        right_by_bytes += _is_best(question.answer, by_bytes)
        truncated += num_dropped > 0
    if not total:
        raise DataError("there are no questions; give at least one")
    return MultipleChoice(total, right, right_by_bytes, truncated)


def _is_best(answer: int, values: list[float]) -> bool:
    """Return whether the largest of the values, the first of equal ones, is that number; none is if one is NaN."""
    return not any(map(math.isnan, values)) and values.index(max(values)) == answer


def read_questions(path: Path) -> Iterator[Question]:
    """Yield the questions of a file of JSON lines, {"context": str, "choices": [str, …], "answer": int}.

    Other keys are left alone. Raises `DataError` that names file and line for what is wrong, and for a file without
    any question.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    number = 0
    found = False
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), start=1):
            if len(line) > MOST_LINE_BYTES:
                raise DataError(f"{path}:{number}: is longer than {MOST_LINE_BYTES >> 20} MiB; a line is a question")
            if line.strip():
                found = True
                yield _parse(line, f"{path}:{number}")
    if not found:
        raise DataError(f"{path}: holds no questions")


def _parse(line: bytes, where: str) -> Question:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not a line of JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object with context, choices and answer (got {_shown(value)})")
    context, choices, answer = (value.get(key) for key in ("context", "choices", "answer"))
    if not isinstance(context, str):
        raise DataError(f"{where}: context must be a string (got {_shown(context)})")
    if not isinstance(choices, list) or not 2 <= len(choices) <= MOST_CHOICES:
        raise DataError(f"{where}: choices must be a list of 2 to {MOST_CHOICES:,} strings (got {_shown(choices)})")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise DataError(f"{where}: choices must be strings that are not empty (got {_shown(choices)})")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: answer must be the number of a choice, from 0 to {len(choices) - 1} (got {_shown(answer)})"
        )
    for text in (context, *choices):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{where}: {_shown(text)} has half of a surrogate pair, which is no character")
    return Question(context, tuple(choices), answer, where)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
