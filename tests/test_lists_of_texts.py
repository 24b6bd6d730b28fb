"""A single text where a list of texts is wanted is a `TypeError`: its characters are not taken for texts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from databuilder import build_dataset, count_total_tokens, resolve_sources
from databuilder.counting import count_sources
from databuilder.pieces import Reading
from transformerlm.evaluation import Evaluator, Question
from transformerlm.evaluation.likelihood import continuation_rows
from transformerlm.hparams import SamplingHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.inference.stopping import StopStrings
from transformerlm.tokenizer import Tokenizer, count_pretokens, train_bpe

TEXT = "Once upon a time"
BYTES = {byte: bytes([byte]) for byte in range(256)}


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    return Predictor.from_checkpoint(run_folder)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda predictor: predictor.complete(TEXT, SamplingHparams()), "prompts"),
        (lambda predictor: predictor.start(TEXT), "prompts"),
        (
            lambda predictor: list(
                predictor.stream(predictor.start(["a"]), SamplingHparams().model_copy(update={"stop": TEXT}))
            ),
            "stop",
        ),
        (lambda predictor: Evaluator(predictor).texts(TEXT), "texts"),
        (lambda predictor: Evaluator(predictor).texts(TEXT.encode()), "texts"),
        (lambda predictor: continuation_rows(predictor.tokenizer, "a", TEXT, context_length=8), "continuations"),
    ],
)
def test_of_a_model(call: Callable[[Predictor], Any], name: str, predictor: Predictor) -> None:
    with pytest.raises(TypeError, match=f"{name} is one text, b?'Once upon a time'; give a list"):
        call(predictor)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda tokenizer, _: tokenizer.encode_batch(TEXT), "texts"),
        (lambda tokenizer, _: tokenizer.encode_batch(TEXT.encode()), "texts"),
        (lambda *_: Tokenizer(BYTES, [], TEXT), "special_tokens"),
        (lambda _, path: train_bpe(path, 300, TEXT), "special_tokens"),  # type: ignore[arg-type]
        (lambda *_: train_bpe(TEXT.encode(), 300, []), "input_path"),  # type: ignore[arg-type]
        (lambda _, path: count_pretokens(path, TEXT), "special_tokens"),
        (lambda tokenizer, path: build_dataset(TEXT, tokenizer, path), "sources"),
        (
            lambda tokenizer, path: build_dataset([path], tokenizer, path, valid=path, valid_sources=TEXT),
            "sources",
        ),
        (lambda tokenizer, _: count_total_tokens(TEXT, tokenizer), "sources"),
        (lambda *_: resolve_sources(TEXT), "names"),
        (
            lambda *_: count_sources([], Reading(), TEXT, executor=ThreadPoolExecutor(1)),
            "special_tokens",
        ),
        (lambda *_: StopStrings(TEXT), "stop"),
        (lambda *_: Question("a", TEXT, 0), "choices"),  # type: ignore[arg-type]
    ],
)
def test_of_a_tokenizer_or_of_data(
    call: Callable[[Tokenizer, Path], Any], name: str, tokenizer: Tokenizer, workspace: Path
) -> None:
    with pytest.raises(TypeError, match=f"{name} is one text, b?'Once upon a time'; give a list"):
        call(tokenizer, workspace / "corpus.txt")


def test_of_tasks() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from transformerlm.evaluation.harness import run_tasks

    with pytest.raises(TypeError, match="tasks is one text"):
        run_tasks(None, TEXT)  # type: ignore[arg-type]


def test_a_setting_is_refused_as_any_other_wrong_setting() -> None:
    with pytest.raises(ValueError, match="stop"):
        SamplingHparams(stop=TEXT)  # type: ignore[arg-type]


def test_the_parts_of_one_text_may_be_its_characters(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.encode_iterable(TEXT)) == tokenizer.encode(TEXT)
