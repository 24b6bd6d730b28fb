"""What /v1/completions answers, by a client without a socket between it and the app."""

import json
import math
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from transformerlm.hparams import ModelHparams, SamplingHparams
from transformerlm.inference import Engine, generate
from transformerlm.inference.batch_sampling import sampling_distribution
from transformerlm.inference.logprobs import TokenLogprobs
from transformerlm.inference.predictor import Predictor
from transformerlm.models.build import build_model
from transformerlm.serving.completions import token_name
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

Client = Callable[..., TestClient]
LISTS = ["tokens", "token_logprobs", "top_logprobs", "text_offset", "token_ids", "token_bytes", "entropy", "top_ids"]


def ask(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": "The cat", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    """The objects of a stream, which must end as it should."""
    answer = client.post("/v1/completions", json={"prompt": "The cat", "stream": True, **fields})
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = answer.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def joined(stream: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """The choice that the chunks of a stream make."""
    chunks = [choice for event in stream for choice in event["choices"] if choice["index"] == index]
    assert all(len(event["choices"]) <= 1 for event in stream)
    assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])
    logprobs = None
    if any(chunk["logprobs"] for chunk in chunks):
        logprobs = {name: [item for chunk in chunks for item in chunk["logprobs"][name]] for name in LISTS}
    return {**chunks[-1], "text": "".join(chunk["text"] for chunk in chunks), "logprobs": logprobs}


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1.2, "seed": 5, "top_p": 0.9, "min_p": 0.001}]
)
def test_the_text_is_the_predictors(client: Client, predictor: Predictor, sampling: dict[str, Any]) -> None:
    hparams = SamplingHparams(**({"top_p": 1.0} | sampling), max_new_tokens=40)
    [expected] = predictor.complete(["The cat"], hparams)
    answer = ask(client(), max_tokens=40, **sampling)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    [choice] = answer["choices"]
    reason = {"end_of_text": "stop", "max_new_tokens": "length"}[str(expected.finish_reason)]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": reason}
    used = answer["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (len(expected.prompt_ids), len(expected.token_ids))
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_greedy_ids_are_those_of_the_plain_loop(client: Client, predictor: Predictor) -> None:
    ids = predictor.tokenizer.encode("A dog")
    expected = generate(predictor.model, torch.tensor(ids), 20, temperature=0.0)[len(ids) :].tolist()
    answer = ask(client(), prompt=ids, max_tokens=20, temperature=0, logprobs=0)
    assert answer["choices"][0]["logprobs"]["token_ids"] == expected


def test_every_form_of_prompt(client: Client, predictor: Predictor) -> None:
    one = client()
    texts = ["The cat", "A dog"]
    ids = [predictor.tokenizer.encode(text) for text in texts]
    several = ask(one, prompt=texts, temperature=0)["choices"]
    assert [choice["index"] for choice in several] == [0, 1]
    assert ask(one, prompt=ids, temperature=0)["choices"] == several
    for row in range(2):
        for prompt in (texts[row], ids[row], [texts[row]], [ids[row]]):
            [choice] = ask(one, prompt=prompt, temperature=0)["choices"]
            assert choice["text"] == several[row]["text"]


def test_an_empty_prompt_begins_a_document(client: Client, predictor: Predictor) -> None:
    answer = ask(client(), prompt="", temperature=0, echo=True, logprobs=1, max_tokens=3)
    [expected] = predictor.complete([""], SamplingHparams(temperature=0.0, max_new_tokens=3))
    choice = answer["choices"][0]
    assert choice["text"] == expected.text
    assert choice["logprobs"]["tokens"][0] == END_OF_TEXT
    assert choice["logprobs"]["text_offset"][:2] == [0, 0]


def test_choices_draw_by_seed_and_index_whatever_is_beside_them(client: Client) -> None:
    one = client()
    prompts = ["The cat", "A dog"]
    sampled = {"temperature": 1, "max_tokens": 12, "logprobs": 0}
    several = ask(one, prompt=prompts, n=3, seed=7, **sampled)["choices"]
    assert [choice["index"] for choice in several] == list(range(6))
    for choice in several:
        prompt = prompts[choice["index"] // 3]
        [alone] = ask(one, prompt=prompt, seed=7 + choice["index"], **sampled)["choices"]
        assert (alone["text"], alone["logprobs"]["token_ids"]) == (choice["text"], choice["logprobs"]["token_ids"])
    assert len({choice["text"] for choice in several}) == 6


def test_without_a_seed_answers_differ_and_any_seed_of_64_bits_is_taken(client: Client) -> None:
    one = client()
    texts = {ask(one)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3
    for seed in (-(2**63), -1, 2**63 - 1):
        assert ask(one, seed=seed) | {"id": 0, "created": 0} == ask(one, seed=seed) | {"id": 0, "created": 0}


def test_stop_strings_end_the_text(client: Client) -> None:
    one = client()
    text = ask(one, temperature=0, max_tokens=40)["choices"][0]["text"]
    stop = text[10:13]
    for given in (stop, [stop, "never"]):
        answer = ask(one, temperature=0, max_tokens=40, stop=given)
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        assert answer["usage"]["completion_tokens"] < 40
    stream = events(one, temperature=0, max_tokens=40, stop=stop)
    assert joined(stream, 0)["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_brings_what_the_answer_has(client: Client, echo: bool) -> None:
    one = client()
    fields = {"prompt": ["The cat", "naïve 你好"], "n": 2, "seed": 1, "max_tokens": 20, "logprobs": 3, "echo": echo}
    whole = ask(one, **fields)
    stream = events(one, **fields)
    assert [joined(stream, index) for index in range(4)] == whole["choices"]
    assert len({event["id"] for event in stream}) == 1
    assert not any("usage" in event for event in stream)
    *chunks, last = events(one, **fields, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in chunks)


def test_no_chunk_ends_within_a_character(client: Client) -> None:
    fields = {"max_tokens": 200, "seed": 3, "temperature": 2}
    whole = ask(client(), **fields)["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in events(client(), **fields)) == whole


def expected_logprobs(predictor: Predictor, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T - 1, V) of what may follow each token but the last."""
    with torch.inference_mode():
        return predictor.model(torch.tensor([ids]))[0].log_softmax(-1)[:-1]


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_are_those_of_the_models_logits(client: Client, predictor: Predictor, echo: bool) -> None:
    answer = ask(client(), logprobs=4, echo=echo, max_tokens=6, seed=0)
    choice = answer["choices"][0]
    lists = choice["logprobs"]
    assert list(lists) == LISTS
    prompt = predictor.tokenizer.encode("The cat")
    ids = lists["token_ids"] if echo else [*prompt, *lists["token_ids"]]
    assert ids[: len(prompt)] == prompt
    rows = expected_logprobs(predictor, ids)
    assert len({len(items) for items in lists.values()}) == 1
    skipped = 1 if echo else 0
    for name in ("token_logprobs", "top_logprobs", "entropy"):
        assert [item is None for item in lists[name]] == [True] * skipped + [False] * (len(lists[name]) - skipped)
    for place in range(skipped, len(lists["tokens"])):
        position = place if echo else place + len(prompt)
        row, token = rows[position - 1], ids[position]
        assert lists["token_logprobs"][place] == pytest.approx(row[token].item(), abs=1e-4)
        assert lists["entropy"][place] == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
        top = row.topk(4)
        wanted = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) | {token: row[token].item()}
        assert set(lists["top_ids"][place]) == set(wanted)
        names = [token_name(predictor.tokenizer, one) for one in lists["top_ids"][place]]
        assert names == list(lists["top_logprobs"][place])
        given = list(lists["top_logprobs"][place].values())
        assert given == pytest.approx([wanted[one] for one in lists["top_ids"][place]], abs=1e-4)


def test_offsets_point_into_the_text(client: Client, predictor: Predictor) -> None:
    fields = {"echo": True, "logprobs": 0, "max_tokens": 30, "seed": 2, "temperature": 2}
    choice = ask(client(), prompt="naïve 你好", **fields)["choices"][0]
    lists = choice["logprobs"]
    assert any(name.startswith("bytes:\\x") for name in lists["tokens"])
    data = b"".join(bytes(token) for token in lists["token_bytes"])
    assert data.decode("utf-8", errors="replace").startswith("naïve 你好")
    for name, offset, token_id, token in zip(*(lists[key] for key in [LISTS[0], *LISTS[3:6]]), strict=True):
        assert bytes(token) == predictor.tokenizer.vocab[token_id]
        if not name.startswith("bytes:") and token_id != predictor.tokenizer.eos_token_id:
            assert choice["text"][offset : offset + len(name)] == name
    assert lists["text_offset"] == sorted(lists["text_offset"])


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_0_scores_the_prompt_alone(client: Client, predictor: Predictor, stream: bool) -> None:
    one = client()
    fields = {"max_tokens": 0, "echo": True, "logprobs": 1}
    if stream:
        choice, used = joined(events(one, **fields), 0), None
    else:
        answer = ask(one, **fields)
        [choice], used = answer["choices"], answer["usage"]
    ids = predictor.tokenizer.encode("The cat")
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["token_ids"]) == ("The cat", "length", ids)
    assert used is None or (used["completion_tokens"], used["prompt_tokens"]) == (0, len(ids))
    assert ask(one, prompt=ids[:1], **fields)["choices"][0]["logprobs"]["token_logprobs"] == [None]


def test_the_end_of_text_is_a_token_but_no_text(
    client: Client, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    eos = predictor.tokenizer.eos_token_id
    assert eos is not None
    monkeypatch.setattr("transformerlm.inference.engine.Engine._draw", lambda _, logits: [eos] * len(logits))
    choice = ask(client(), logprobs=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert (choice["logprobs"]["tokens"], choice["logprobs"]["token_ids"]) == ([END_OF_TEXT], [eos])


def test_special_tokens_in_a_prompt_are_what_they_are_for_the_predictor(client: Client, predictor: Predictor) -> None:
    prompt = f"One.{END_OF_TEXT}Two"
    answer = ask(client(), prompt=prompt, echo=True, max_tokens=0, logprobs=0)
    assert answer["choices"][0]["text"] == prompt
    assert answer["choices"][0]["logprobs"]["token_ids"] == predictor.encode_prompt(prompt)
    assert predictor.tokenizer.eos_token_id in predictor.encode_prompt(prompt)


def test_ids_beyond_the_tokenizer_have_a_name_and_no_text(client: Client, predictor: Predictor) -> None:
    shape = ModelHparams(vocab_size=4000, context_length=64, d_model=8, num_layers=1, num_heads=1, d_ff=8)
    padded = Predictor(build_model(shape, seed=0), predictor.tokenizer)
    choice = ask(client(predictor=padded), logprobs=2, max_tokens=20, seed=0)["choices"][0]
    unknown = [place for place, token in enumerate(choice["logprobs"]["token_ids"]) if token >= 320]
    assert unknown
    for place in unknown:
        assert choice["logprobs"]["tokens"][place] == f"token_id:{choice['logprobs']['token_ids'][place]}"
        assert choice["logprobs"]["token_bytes"][place] == []


def test_a_model_that_holds_nothing_possible_still_gives_json(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = TokenLogprobs(-math.inf, [(0, math.nan)], math.nan)
    monkeypatch.setattr(
        "transformerlm.inference.engine.Engine._logprobs", lambda self, *_: [nothing] * len(self._slots)
    )
    lists = ask(client(), logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert lists["token_logprobs"] == [-9999.0]


def test_an_engine_that_fails_is_an_error_and_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    one = client()
    with monkeypatch.context() as broken:
        broken.setattr("transformerlm.inference.engine.Engine._draw", lambda *_: [].pop())
        answer = one.post("/v1/completions", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        text = one.post("/v1/completions", json={"prompt": "a", "stream": True}).text
        assert json.loads(text.removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert ask(one)["choices"][0]["finish_reason"]


@pytest.fixture(params=["beginning", "NFC"])
def other(request: pytest.FixtureRequest, predictor: Predictor) -> Predictor:
    """A predictor whose tokenizer begins texts by a token, or normalizes them."""
    bytes_only = {number: bytes([number]) for number in range(256)}
    kind: dict[str, Any] = {"normalization": "NFC"}
    if request.param == "beginning":
        kind = {"beginning_of_text": "<|begin|>"}
    tokenizer = Tokenizer(bytes_only, [], ["<|begin|>", END_OF_TEXT], pattern="qwen2", **kind)
    return Predictor(predictor.model, tokenizer)


@pytest.mark.parametrize(
    "prompt", ["The cat", "nai\u0308ve cafe\u0301 \u1112\u1161\u11ab", "e\u0301<|endoftext|>x", ""]
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 8])
def test_offsets_of_an_echoed_prompt_point_into_the_text(
    client: Client, other: Predictor, prompt: str, stream: bool, max_tokens: int
) -> None:
    one, tokenizer = client(predictor=other), other.tokenizer
    fields = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": max_tokens, "seed": 1}
    choice = joined(events(one, **fields), 0) if stream else ask(one, **fields)["choices"][0]
    text, lists = choice["text"], choice["logprobs"]
    ids = other.encode_prompt(prompt)
    assert lists["token_ids"][: len(ids)] == ids
    is_normalized = tokenizer.bos_token_id is None
    echoed = unicodedata.normalize("NFC", prompt) if is_normalized else prompt
    assert text.startswith(echoed)
    num_added = 0 if prompt and is_normalized else 1
    assert lists["text_offset"][:num_added] == [0] * num_added
    pieces = list(zip(lists["tokens"], lists["text_offset"], strict=True))[num_added : len(ids)]
    assert pieces or not prompt
    for name, offset in pieces:
        assert name.startswith("bytes:") or echoed[offset : offset + len(name)] == name
    assert lists["text_offset"] == sorted(lists["text_offset"])
    if max_tokens:
        assert lists["text_offset"][len(ids)] == len(echoed)


@pytest.mark.parametrize("echo", [False, True])
def test_sampling_probabilities_are_those_after_the_filters(client: Client, predictor: Predictor, echo: bool) -> None:
    settings = {"temperature": 1.3, "top_k": 40, "top_p": 0.6, "repetition_penalty": 1.5}
    fields = {"logprobs": 5, "max_tokens": 6, "seed": 0, "echo": echo, **settings}
    one = client()
    plain, choice = (ask(one, **fields, sampling_probs=given)["choices"][0] for given in (False, True))
    probs = choice["logprobs"].pop("sampling_probs")
    assert plain == choice  # nothing else has changed
    chunks = [event["choices"][0]["logprobs"] for event in events(one, **fields, sampling_probs=True)]
    assert [item for chunk in chunks for item in chunk["sampling_probs"]] == probs
    prompt = predictor.tokenizer.encode("The cat")
    ids = choice["logprobs"]["token_ids"] if echo else [*prompt, *choice["logprobs"]["token_ids"]]
    num_prompt = len(prompt) if echo else 0
    assert probs[:num_prompt] == [None] * num_prompt
    with torch.inference_mode():
        logits = predictor.model(torch.tensor([ids]))[0]
    for place in range(len(prompt), len(ids)):
        seen = torch.zeros(logits.shape[-1], dtype=torch.bool)
        seen[ids[:place]] = True
        expected = sampling_distribution(logits[place - 1], SamplingHparams(**settings), seen)
        shown = place if echo else place - len(prompt)
        top_ids = choice["logprobs"]["top_ids"][shown]
        assert probs[shown] == pytest.approx(expected[top_ids].tolist(), abs=1e-4)
        assert expected[ids[place]] > 0


def test_models_and_metrics(client: Client, predictor: Predictor) -> None:
    one = client()
    [model] = one.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["context_length"]) == ("tiny", "model", 2048)
    assert one.get("/v1/models/tiny").json() == model
    assert one.get("/v1/models/other").status_code == 404
    assert one.get("/health").json() == {"status": "ok"}
    ask(one, max_tokens=5, temperature=0)
    one.get("/nothing")
    text = one.get("/metrics").text
    assert 'transformerlm_requests_total{status="200"} 4.0' in text
    assert 'transformerlm_requests_total{status="404"} 2.0' in text
    assert f"transformerlm_prompt_tokens_total {len(predictor.tokenizer.encode('The cat')):.1f}" in text
    assert "transformerlm_generated_tokens_total 5.0" in text
    assert "transformerlm_engine_steps_total 5.0" in text
    assert "transformerlm_time_to_first_token_seconds_count 1.0" in text
    assert "transformerlm_time_per_token_seconds_count 5.0" in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engines_thread_ends_everybody_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(_engine: Engine) -> None:
        raise TypeError("a mistake")

    test_client = client()
    monkeypatch.setattr(Engine, "step", break_down)
    for _ in range(2):  # one that runs, and one that comes later
        answer = test_client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_ended"
    assert test_client.get("/health").status_code == 503
