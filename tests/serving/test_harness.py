"""The real lm-evaluation-harness scores the model through the server, as its `local-completions`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.predictor import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PAIRS = [
    ("The cat", " sat near the house"),
    ("A big red dog", " went home"),
    ("Once", " 你好 café"),
    ("The fox and the bird ran over the hill.", "\nThen"),
]


@pytest.fixture(scope="module")
def tokenizer_folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our tokenizer in the form that transformers reads."""
    pytest.importorskip("lm_eval", reason="needs lm-eval: uv sync --group peers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from transformerlm.tokenizer import END_OF_TEXT

    folder = tmp_path_factory.mktemp("tokenizer")
    predictor.tokenizer.save(folder)
    bpe = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT).save_pretrained(folder / "hf")
    return folder / "hf"


@pytest.fixture
def make_model(process: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the harness' model of our server."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(**settings: Any) -> Any:
        return LocalCompletionsAPI(
            model="random-stories",
            base_url=f"{process.address}/v1/completions",
            tokenizer=str(tokenizer_folder),
            tokenizer_backend="huggingface",
            max_length=512,
            max_retries=1,
            **settings,
        )

    return make


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def scored(predictor: Predictor, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of a continuation by the model's logits, and whether each token is the likeliest."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        rows = predictor.model(ids)[0].log_softmax(-1)[len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    return rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all())


def likeliest_pair(predictor: Predictor) -> tuple[str, str]:
    """Return a context and the model's likeliest token after it, which is text that is encoded to that token."""
    contexts = [f"Story {number}" for number in range(200)]
    for one in predictor.complete(contexts, SamplingHparams(temperature=0.0, max_new_tokens=1)):
        if predictor.tokenizer.encode(one.prompt + one.text) == [*one.prompt_ids, *one.token_ids]:
            return one.prompt, one.text
    raise AssertionError("there is none")


@pytest.mark.parametrize("settings", [{}, {"batch_size": 3}, {"num_concurrent": 4}, {"tokenized_requests": False}])
def test_log_likelihoods_are_those_of_the_logits(
    make_model: Callable[..., Any], predictor: Predictor, settings: dict[str, Any]
) -> None:
    encode = predictor.tokenizer.encode
    pairs = [*PAIRS, likeliest_pair(predictor)]
    given = make_model(**settings).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert len(given) == len(pairs)
    for (context, continuation), (value, is_greedy) in zip(pairs, given, strict=True):
        whole = encode(context + continuation)
        begin = len(encode(context))
        expected, is_likeliest = scored(predictor, whole[:begin], whole[begin:])
        assert value == pytest.approx(expected, abs=1e-3)
        assert is_greedy == is_likeliest
    assert [is_greedy for _, is_greedy in given] == [False] * len(PAIRS) + [True]


def test_rolling_log_likelihoods(make_model: Callable[..., Any], predictor: Predictor) -> None:
    text = "The cat sat. " * 40
    [value] = make_model().loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    ids = predictor.tokenizer.encode(text)
    assert len(ids) < 511  # one window
    eos = predictor.tokenizer.eos_token_id
    assert eos is not None
    assert value == pytest.approx(scored(predictor, [eos], ids)[0], abs=1e-2)


def test_generation_until_a_stop_string(make_model: Callable[..., Any], predictor: Predictor) -> None:
    [whole] = predictor.complete(["The cat"], SamplingHparams(temperature=0.0, max_new_tokens=30))
    stop = whole.text[12:15]
    arguments = [("The cat", {"until": [stop], "max_gen_toks": 30}), ("The cat", {"until": [], "max_gen_toks": 30})]
    given = make_model().generate_until(instances("generate_until", arguments), disable_tqdm=True)
    assert given == [whole.text[: whole.text.index(stop)], whole.text]


def test_a_whole_task(
    make_model: Callable[..., Any], tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    choices = [" sat near", " went over the hill"]
    rows = [{"text": context, "choices": choices, "answer": number % 2} for number, (context, _) in enumerate(PAIRS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "little.yaml").write_text(
        f"task: little\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "  cache_dir: " + str(tmp_path / "cache") + "\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n",
        encoding="utf-8",
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    done = lm_eval.simple_evaluate(
        model=make_model(), tasks=["little"], task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    encode, right = predictor.tokenizer.encode, 0
    for row in rows:
        begin = len(encode(str(row["text"])))
        values = [
            scored(predictor, ids[:begin], ids[begin:])[0] for ids in (encode(row["text"] + one) for one in choices)
        ]
        right += values.index(max(values)) == row["answer"]
    assert done["results"]["little"]["acc,none"] == right / len(rows)
