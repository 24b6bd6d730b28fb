"""Multiple choice: the model picks the most likely of several continuations of a context.

The sum of log-likelihoods favours short answers, since every token lowers it. So two accuracies are counted, as in
lm-evaluation-harness: by that sum, and by the sum divided by the length of the answer. The length is in UTF-8 bytes,
not tokens, so that it is the same for all tokenizers (the harness calls this `acc_bytes`; its `acc_norm` counts
characters, which is the same for ASCII).
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformerlm.utils.errors import DataError, require_list

MAX_CHOICES = 1000
"""Per question; a limit to reject files of another kind."""
MAX_LINE_BYTES = 1 << 24
"""Per question, for the same reason."""


@dataclass(frozen=True)
class Question:
    """A context, its possible continuations (verbatim: a space between belongs to either), and the answer."""

    context: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct choice, from 0."""
    where: str = ""
    """File and line, for errors."""

    def __post_init__(self) -> None:
        require_list("choices", self.choices)


@dataclass(frozen=True)
class MultipleChoice:
    """The score of a model on multiple-choice questions."""

    num_questions: int
    num_correct: int
    """By the sum of log-likelihoods; the first of equal choices counts."""
    num_correct_by_bytes: int
    """By log-likelihood per byte."""
    num_truncated: int
    """Questions with a context that was too long, so that its beginning was cut off."""

    @property
    def accuracy(self) -> float:
        """Share of correct answers by the sum of log-likelihoods."""
        return self.num_correct / self.num_questions

    @property
    def normalized_accuracy(self) -> float:
        """Share of correct answers by log-likelihood per byte."""
        return self.num_correct_by_bytes / self.num_questions

    def standard_error(self, accuracy: float) -> float | None:
        """Return the standard error of an accuracy a over n questions, √(a (1 − a) / (n − 1)); None if n is 1."""
        if self.num_questions < 2:
            return None
        return math.sqrt(accuracy * (1 - accuracy) / (self.num_questions - 1))


def count_right(answers: Iterable[tuple[Question, list[float], int]]) -> MultipleChoice:
    """Count the correct answers; each item is a question, the log-likelihoods of its choices, and the ids cut off."""
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
    """Return whether `answer` is the index of the largest value, the first of equal ones; False if a value is NaN."""
    return not any(map(math.isnan, values)) and values.index(max(values)) == answer


def read_questions(path: Path) -> Iterator[Question]:
    """Yield the questions of a file of JSON lines, {"context": str, "choices": [str, …], "answer": int}.

    Other keys are ignored. Raises `DataError` with file and line for an invalid question, and for a file without
    questions.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    number = 0
    found = False
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}:{number}: is longer than {MAX_LINE_BYTES >> 20} MiB; a line is a question")
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
    if not isinstance(choices, list) or not 2 <= len(choices) <= MAX_CHOICES:
        raise DataError(f"{where}: choices must be a list of 2 to {MAX_CHOICES:,} strings (got {_shown(choices)})")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise DataError(f"{where}: choices must be strings that are not empty (got {_shown(choices)})")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: answer must be the number of a choice, from 0 to {len(choices) - 1} (got {_shown(answer)})"
        )
    for text in (context, *choices):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{where}: {_shown(text)} has a lone surrogate, which is not a character")
    return Question(context, tuple(choices), answer, where)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
