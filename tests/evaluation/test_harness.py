"""The real lm-evaluation-harness, offline, with tasks from files; its numbers are ours."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transformerlm.evaluation import Evaluator, Question
from transformerlm.hparams import EvaluationHparams, SamplingHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.models import TransformerLM
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import ConfigError, DataError

pytest.importorskip("lm_eval", reason="needs lm-eval: uv sync --group peers")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from transformerlm.evaluation.harness import HarnessModel, run_tasks, sampling_of

CONTEXT = 24

QUESTIONS = [
    Question("The cat", (" sat near", " went home"), 0),
    Question("A big red dog", (" went over the hill", " ran"), 1),
    Question("Once the bird", (" sat", " and the fox"), 0),
    Question("The fox", (" ran", " saw the old tree"), 1),
]
LONG = (Path(__file__).parent / "data/rolling_one_document.jsonl").read_text(encoding="utf-8")
TEXTS = ["The cat sat near the house. " * 3, "A big red dog", "naïve café 你好 went home"]


@pytest.fixture
def evaluator(make_model: Callable[..., TransformerLM], tokenizer: Tokenizer) -> Evaluator:
    return Evaluator(Predictor(make_model(context_length=CONTEXT), tokenizer), EvaluationHparams(stride=7))


@pytest.fixture
def tasks(evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three tasks, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    [greedy] = evaluator.predictor.complete(["The cat"], SamplingHparams(temperature=0.0, max_new_tokens=3))
    rows: dict[str, list[dict[str, Any]]] = {
        "choice": [{"text": q.context, "choices": q.choices, "answer": q.answer} for q in QUESTIONS],
        "rolling": [{"text": text} for text in TEXTS],
        "writing": [{"text": "The cat", "answer": answer} for answer in (greedy.text, greedy.text + "!")],
    }
    kinds = {
        "choice": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        'doc_to_text: "{{text}}"\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n  - metric: acc_bytes\n',
        "rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n  - metric: byte_perplexity\n",
        "writing": 'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: answer\n'
        "generation_kwargs:\n  until: []\n  max_gen_toks: 3\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n",
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, listed in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, listed)), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / name}.jsonl\n"
            f'  cache_dir: {tmp_path / "cache"}\ntest_split: test\ntarget_delimiter: ""\n{kinds[name]}',
            encoding="utf-8",
        )
    return folder


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]  # type: ignore[arg-type]


def test_its_numbers_are_ours(evaluator: Evaluator, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice, rolling, writing = run_tasks(HarnessModel(evaluator), ["choice", "rolling", "writing"], tasks)
    ours = evaluator.choices(QUESTIONS)
    assert 0 < ours.num_correct < 4 or ours.num_correct != ours.num_correct_by_bytes  # a guess would not do
    assert (choice.task, choice.num_questions) == ("choice", 4)
    assert choice.metrics["acc"] == ours.accuracy
    assert choice.metrics["acc_bytes"] == choice.metrics["acc_norm"] == ours.normalized_accuracy
    assert choice.metrics["acc_stderr"] == pytest.approx(ours.standard_error(ours.accuracy))
    num_bytes = sum(len(text.encode("utf-8")) for text in TEXTS)
    bits_per_byte = -sum(rolling_log_likelihood(evaluator, text) for text in TEXTS) / num_bytes / math.log(2)
    assert rolling.metrics["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-5)
    assert rolling.metrics["byte_perplexity"] == pytest.approx(2**bits_per_byte, rel=1e-5)
    assert writing.metrics["exact_match"] == 0.5
    assert capsys.readouterr().out == ""  # stdout is for results


def rolling_log_likelihood(evaluator: Evaluator, text: str) -> float:
    """The log-likelihood by the model's logits, in windows found as in the harness' HFLM."""
    tokenizer, total = evaluator.tokenizer, 0.0
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert begin is not None
    windows = get_rolling_token_windows(
        token_list=tokenizer.encode(text), prefix_token=begin, max_seq_len=CONTEXT, context_len=1
    )
    for context, scored in map(make_disjoint_window, windows):
        with torch.inference_mode():
            logprobs = evaluator.model(torch.tensor([(context + scored)[:-1]]))[0].log_softmax(-1)
        total += logprobs[-len(scored) :].double().gather(1, torch.tensor(scored)[:, None]).sum().item()
    return total


def test_texts_are_cut_into_the_windows_of_the_harness(evaluator: Evaluator) -> None:
    texts = ["", *TEXTS, json.loads(LONG)["text"], ""]
    assert len(evaluator.tokenizer.encode(texts[-2])) > 10 * CONTEXT
    found = HarnessModel(evaluator).loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in texts])
    )
    assert found == pytest.approx([rolling_log_likelihood(evaluator, text) for text in texts], rel=1e-5)
    assert (found[0], found[-1]) == (0, 0)
    ours = evaluator.texts([texts[-2]])  # windows that overlap
    assert abs(found[-2] - (ours.end_nats - ours.nats)) > 1


def test_a_text_within_the_context_has_the_same_likelihood_by_both_kinds_of_windows(evaluator: Evaluator) -> None:
    [found] = HarnessModel(evaluator).loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXTS[1],)]))
    ours = evaluator.texts([TEXTS[1]])
    assert ours.num_windows == 1
    assert found == pytest.approx(ours.end_nats - ours.nats, rel=1e-6)


def test_a_tokenizer_that_cannot_begin_a_text_is_refused(make_model: Callable[..., TransformerLM]) -> None:
    tokenizer = Tokenizer({number: bytes([number]) for number in range(256)}, [])
    evaluator = Evaluator(Predictor(make_model(256), tokenizer))
    with pytest.raises(ConfigError, match="no beginning-of-text or end-of-text token"):
        HarnessModel(evaluator).loglikelihood_rolling(instances("loglikelihood_rolling", [("a",)]))


def test_pairs_are_those_of_the_evaluator(evaluator: Evaluator) -> None:
    pairs = [(question.context, choice) for question in QUESTIONS for choice in question.choices]
    requests = instances("loglikelihood", pairs)
    assert HarnessModel(evaluator).loglikelihood(requests) == evaluator.continuations(pairs)


def test_generation_is_greedy_up_to_a_stop_string(evaluator: Evaluator) -> None:
    model = HarnessModel(evaluator)
    greedy = SamplingHparams(temperature=0.0, max_new_tokens=8)
    [whole] = evaluator.predictor.complete(["The cat"], greedy)
    long = "the dog ran home and " * 9
    ids = evaluator.tokenizer.encode(long)[-16:]
    arguments = [
        ("The cat", {"until": [], "max_gen_toks": 8, "do_sample": False}),
        ("The cat", {"until": whole.text[1:3], "max_gen_toks": 8}),
        ("The cat", {"until": [""], "max_gen_toks": 2, "temperature": 0.0}),
        (long, {"until": [], "max_gen_toks": 8}),
    ]
    found = model.generate_until(instances("generate_until", arguments))
    [end] = evaluator.predictor.complete([evaluator.tokenizer.decode(ids)], greedy)
    assert end.prompt_ids == ids
    assert found == [whole.text, whole.text[: whole.text.index(whole.text[1:3])], found[2], end.text]
    assert whole.text.startswith(found[2])


def test_what_a_task_asks_for_in_our_terms() -> None:
    assert sampling_of({}, context_length=1024).max_new_tokens == 256
    assert sampling_of({}, context_length=64) == SamplingHparams(temperature=0.0, top_p=1.0, max_new_tokens=32)
    sampled = sampling_of({"do_sample": True, "top_p": 0.5, "until": "x", "seed": 3}, context_length=64)
    assert (sampled.temperature, sampled.top_p, sampled.stop, sampled.seed) == (1.0, 0.5, ("x",), 3)
    assert sampling_of({"do_sample": False, "temperature": 0.7}, context_length=64).temperature == 0
    with pytest.raises(ConfigError, match=r"generation_kwargs .*num_beams.* are not supported"):
        sampling_of({"num_beams": 4}, context_length=64)


def test_more_new_tokens_than_the_context_are_refused(evaluator: Evaluator) -> None:
    with pytest.raises(ConfigError, match=r"asks for 24 new tokens .max_gen_toks., and the model's context is 24"):
        HarnessModel(evaluator).generate_until(instances("generate_until", [("a", {"max_gen_toks": 24})]))


def test_the_harness_knows_the_model_by_name(run_folder: Path) -> None:
    kind = get_model("transformerlm")
    assert kind is HarnessModel
    model = kind.create_from_arg_string(f"checkpoint={run_folder},stride=8", {"batch_size": 2, "device": "cpu"})
    assert (model.evaluator.stride, model.evaluator.batch_size) == (8, 2)
    [value] = model.loglikelihood_rolling(instances("loglikelihood_rolling", [("The cat sat",)]))
    assert math.isfinite(value) and value < 0


def test_tasks_that_are_not_there_are_refused(evaluator: Evaluator, tasks: Path) -> None:
    model = HarnessModel(evaluator)
    with pytest.raises(ConfigError, match=r"evaluation.tasks: there is no task 'choise'; known are: choice"):
        run_tasks(model, ["choise"], tasks)
    with pytest.raises(ConfigError, match=r"evaluation.task_path: there is no folder"):
        run_tasks(model, ["choice"], tasks / "none")


def test_data_that_cannot_be_read_is_named(evaluator: Evaluator, tasks: Path) -> None:
    (tasks / "choice.jsonl").unlink()
    with pytest.raises(DataError, match=r"evaluation.tasks: the data of choice cannot be read: .*choice\.jsonl"):
        run_tasks(HarnessModel(evaluator), ["choice"], tasks)


def test_a_batch_size_is_a_number(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size must be a number of rows \(got 'auto'\)"):
        HarnessModel(run_folder, batch_size="auto")
