"""Multiple choice: likelihoods of texts after a context, and files of questions."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transformerlm.evaluation import Evaluator, MultipleChoice, Question, read_questions
from transformerlm.evaluation.choices import MAX_LINE_BYTES, count_right
from transformerlm.evaluation.likelihood import continuation_rows, prompt_ids
from transformerlm.hparams import EvaluationHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.models import TransformerLM
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import ConfigError, DataError

CONTEXT = 12

QUESTIONS = [
    Question("The cat", (" sat near", " went home again", " 你好"), 0),
    Question("A big red dog", (" and", " ran"), 1),
    Question("", ("The", "s", "café"), 2),
    Question("The fox ", ("and", "the bird"), 1),
]


def evaluator(model: TransformerLM, tokenizer: Tokenizer, batch_size: int = 16) -> Evaluator:
    return Evaluator(Predictor(model, tokenizer), EvaluationHparams(batch_size=batch_size))


def likelihood(model: TransformerLM, before: list[int], ids: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of ids after others, and whether each is the likeliest."""
    with torch.inference_mode():
        rows = model(torch.tensor([[*before, *ids[:-1]]]))[0].log_softmax(-1)[len(before) - 1 :]
    wanted = torch.tensor(ids)
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all())


def split(tokenizer: Tokenizer, context: str, choice: str) -> tuple[list[int], list[int]]:
    """Return ids of context and choice where no token lies across the border."""
    before, whole = tokenizer.encode(context.rstrip()), tokenizer.encode(context + choice)
    assert whole[: len(before)] == before
    return (before, whole[len(before) :]) if before else ([319], whole)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_accuracy_is_that_of_the_likelihoods(
    batch_size: int, make_model: Callable[..., TransformerLM], tokenizer: Tokenizer
) -> None:
    for seed in range(5):
        model = make_model(context_length=24, seed=seed)
        right = by_bytes = 0
        for question in QUESTIONS:
            sums = [likelihood(model, *split(tokenizer, question.context, choice))[0] for choice in question.choices]
            means = [value / len(choice.encode()) for value, choice in zip(sums, question.choices, strict=True)]
            right += sums.index(max(sums)) == question.answer
            by_bytes += means.index(max(means)) == question.answer
        found = evaluator(model, tokenizer, batch_size).choices(QUESTIONS)
        assert found == MultipleChoice(4, right, by_bytes, 0)
        assert (found.accuracy, found.normalized_accuracy) == (right / 4, by_bytes / 4)


def test_pairs_get_their_likelihood_and_whether_it_is_greedy(
    make_model: Callable[..., TransformerLM], tokenizer: Tokenizer
) -> None:
    model = make_model(context_length=24)
    pairs = [(question.context, choice) for question in QUESTIONS for choice in question.choices]
    found = evaluator(model, tokenizer).continuations(pairs)
    assert len(found) == len(pairs)
    for pair, (value, is_greedy) in zip(pairs, found, strict=True):
        expected, is_likeliest = likelihood(model, *split(tokenizer, *pair))
        assert value == pytest.approx(expected, rel=1e-5)
        assert is_greedy == is_likeliest


def test_the_standard_error_is_that_of_a_mean() -> None:
    found = MultipleChoice(5, 2, 5, 0)
    values = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    assert found.standard_error(found.accuracy) == pytest.approx((values.std() / math.sqrt(5)).item())
    assert found.standard_error(found.normalized_accuracy) == 0
    assert MultipleChoice(1, 1, 1, 0).standard_error(1.0) is None


def test_a_token_across_the_border_is_scored_with_what_it_swallows(tokenizer: Tokenizer) -> None:
    whole, other = tokenizer.encode("the cat the"), tokenizer.encode("the cat tree")
    context = "the cat t"
    assert tokenizer.encode(context) != whole[: len(tokenizer.encode(context))]
    rows, dropped = continuation_rows(tokenizer, context, ["he", "ree"], context_length=32)
    shared = len(tokenizer.encode("the cat"))
    assert [row.ids.tolist() for row in rows] == [whole, other]
    assert [row.first_scored for row in rows] == [shared - 1] * 2  # both after the same ids
    assert dropped == 0


def test_white_space_belongs_to_what_follows(tokenizer: Tokenizer) -> None:
    [one], [other] = (
        continuation_rows(tokenizer, context, [text], context_length=32).rows
        for context, text in (("the cat ", "sat"), ("the cat", " sat"))
    )
    assert one.ids.tolist() == other.ids.tolist()
    assert one.first_scored == other.first_scored


@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_is_the_beginning_of_a_document(context: str, tokenizer: Tokenizer) -> None:
    [row], _ = continuation_rows(tokenizer, context, ["the"], context_length=32)
    assert row.ids.tolist() == [319, *tokenizer.encode(context + "the")]
    assert row.first_scored == 0
    bare = Tokenizer({number: bytes([number]) for number in range(256)}, [], [])
    with pytest.raises(ConfigError, match="a context is empty, and the tokenizer has no end-of-text token"):
        continuation_rows(bare, context, ["the"], context_length=32)


def test_a_beginning_of_text_always_comes_first(tokenizer: Tokenizer) -> None:
    begun = Tokenizer(tokenizer.vocab, tokenizer.merges, [END_OF_TEXT, "<|begin|>"], beginning_of_text="<|begin|>")
    cat, sat = begun.encode("The cat"), begun.encode(" sat")
    for context, ids, first in (("The cat", [320, *cat, *sat], len(cat)), ("", [320, *sat], 0)):
        [row], _ = continuation_rows(begun, context, [" sat"], context_length=32)
        assert (row.ids.tolist(), row.first_scored) == (ids, first)
    [row], dropped = continuation_rows(begun, "The cat", [" sat"], context_length=len(sat) + 1)
    assert (row.ids.tolist(), dropped) == ([320, cat[-1], *sat], len(cat) - 1)  # it stays when the context is cut
    assert prompt_ids(begun, "The cat", max_tokens=2) == [320, cat[-1]]
    assert prompt_ids(begun, "", max_tokens=2) == [320]
    assert prompt_ids(tokenizer, "", max_tokens=2) == [319]
    assert prompt_ids(tokenizer, "The cat", max_tokens=1) == cat[-1:]


def test_a_context_that_is_too_long_loses_its_beginning(
    make_model: Callable[..., TransformerLM], tokenizer: Tokenizer
) -> None:
    model = make_model()
    context, choices = "\x01" * 30, ("ab", "\x02\x03\x04")
    rows, dropped = continuation_rows(tokenizer, context, choices, context_length=CONTEXT)
    assert dropped == 30 + 3 - 1 - CONTEXT
    assert [row.ids.tolist() for row in rows] == [[1] * 10 + list(choice.encode()) for choice in choices]
    sums = [likelihood(model, [1] * 10, list(choice.encode()))[0] for choice in choices]
    best = sums.index(max(sums))
    found = evaluator(model, tokenizer).choices([Question(context, choices, best), Question("a", ("b", "c"), 0)])
    assert found.num_correct >= 1
    assert found.num_truncated == 1


def test_a_choice_without_room_is_refused_by_name(
    make_model: Callable[..., TransformerLM], tokenizer: Tokenizer
) -> None:
    question = Question("a", ("b", "\x01" * 13), 0, "file.jsonl:7")
    with pytest.raises(DataError, match=r"file.jsonl:7: a continuation of 13 tokens does not fit"):
        evaluator(make_model(), tokenizer).choices([question])
    fits = Question("aa", ("b", "\x01" * 12), 0)
    assert evaluator(make_model(), tokenizer).choices([fits]).num_truncated == 1
    with pytest.raises(DataError, match="there are no questions"):
        evaluator(make_model(), tokenizer).choices([])
    with pytest.raises(DataError, match="a continuation is empty"):
        evaluator(make_model(), tokenizer).continuations([("a", "")])


def test_many_choices_are_computed_in_several_packs(
    make_model: Callable[..., TransformerLM], tokenizer: Tokenizer
) -> None:
    model = make_model()
    choices = tuple(f" {chr(letter)}{chr(letter)}" for letter in range(97, 110))
    sums = [likelihood(model, *split(tokenizer, "The", choice))[0] for choice in choices]
    found = evaluator(model, tokenizer, 2).choices([Question("The", choices, sums.index(max(sums)))] * 3)
    assert found.num_correct == 3


def test_a_file_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = [
        {"context": question.context, "choices": question.choices, "answer": question.answer, "id": 5}
        for question in QUESTIONS
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    found = list(read_questions(path))
    assert [question.where for question in found] == [f"{path}:{line}" for line in (1, 3, 5, 7)]
    assert [(q.context, q.choices, q.answer) for q in found] == [(q.context, q.choices, q.answer) for q in QUESTIONS]


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not a line of JSON"),
        (b'{"context": "\xff"}', "is not a line of JSON in UTF-8"),
        (b"[" * 100_000, "is not a line of JSON"),
        (b"[]", r"must be an object with context, choices and answer \(got \[\]\)"),
        (GOOD | {"context": None}, r"context must be a string \(got nothing\)"),
        (GOOD | {"choices": "bc"}, "choices must be a list of 2 to 1,000 strings"),
        (GOOD | {"choices": ["b"]}, "choices must be a list of 2 to 1,000 strings"),
        (GOOD | {"choices": ["b"] * 1001}, "choices must be a list of 2 to 1,000 strings"),
        (GOOD | {"choices": ["b", ""]}, "choices must be strings that are not empty"),
        (GOOD | {"choices": ["b", 3]}, "choices must be strings that are not empty"),
        (GOOD | {"answer": 2}, r"answer must be the number of a choice, from 0 to 1 \(got 2\)"),
        (GOOD | {"answer": -1}, "answer must be the number of a choice"),
        (GOOD | {"answer": True}, "answer must be the number of a choice"),
        (GOOD | {"answer": 1.0}, "answer must be the number of a choice"),
        (GOOD | {"context": "\ud800"}, ".* has a lone surrogate"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: bytes | dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + text + b"\n")
    with pytest.raises(DataError, match=f"questions.jsonl:2: {message}") as caught:
        list(read_questions(path))
    assert len(str(caught.value)) < 400


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    with path.open("wb") as file:
        file.truncate(2 * MAX_LINE_BYTES)
    with pytest.raises(DataError, match=r"questions.jsonl:1: is longer than 16 MiB; a line is a question"):
        list(read_questions(path))


def test_a_model_that_gives_nan_is_never_right() -> None:
    for answer, likelihoods in ((0, [math.nan, math.nan]), (0, [-1.0, math.nan]), (1, [math.nan, -1.0])):
        found = count_right([(Question("", ("a", "b"), answer), likelihoods, 0)])
        assert (found.num_correct, found.num_correct_by_bytes) == (0, 0)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none.jsonl: holds no questions"):
        list(read_questions(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"other.jsonl: cannot be read: No such file"):
        list(read_questions(tmp_path / "other.jsonl"))
