"""Requests that are refused: each with the field that is wrong, in OpenAI's form, and never as the server's mistake."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.serving.errors import ApiError
from transformerlm.serving.protocol import CompletionRequest, parse_request

Client = Callable[..., TestClient]
LIMITS = {
    "prompt_tokens": 20, "prompts": 3, "max_tokens": 30, "n": 2, "stops": 2, "stop_length": 5, "logprobs": 4,
    "queue": 0, "body_bytes": 2000, "total_tokens": 100,
}  # fmt: skip


def refused(client: TestClient, status: int, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": "a", **fields})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": [0] * 21}, "prompt", "has 21 tokens, and at most 20 are allowed"),
        ({"prompt": "a" * 21}, "prompt", "has 21 tokens"),
        ({"prompt": ["a", "b", "c", "d"]}, "prompt", "at most 3 prompts are allowed"),
        ({"max_tokens": 31}, "max_tokens", "at most 30 tokens are allowed"),
        ({"n": 3}, "n", "at most 2 choices"),
        ({"stop": ["a", "b", "c"]}, "stop", "at most 2 strings"),
        ({"stop": "abcdef"}, "stop", "at most 5 characters"),
        ({"logprobs": 5}, "logprobs", "at most 4 tokens"),
        ({"prompt": [[0] * 20] * 3, "max_tokens": 30}, "prompt", "asks for 150 tokens, and at most 100 are allowed"),
        ({"prompt": ["a", "b"], "n": 2}, "n", "more than 3 continuations at a time"),
    ],
)
def test_every_limit_of_a_request(client: Client, fields: dict[str, Any], param: str, words: str) -> None:
    error = refused(client(slots=3, **LIMITS), 400, **fields)
    assert error["param"] == param
    assert words in error["message"]
    assert error["code"] in ("limit_exceeded", "context_length_exceeded")


def test_what_is_just_within_the_limits_is_answered(client: Client) -> None:
    fields = {"prompt": "a" * 20, "max_tokens": 30, "n": 2, "stop": ["abcde", "f"], "logprobs": 4}
    assert client(slots=3, **LIMITS).post("/v1/completions", json=fields).status_code == 200


def test_a_prompt_must_leave_room_in_the_context(client: Client) -> None:
    assert refused(client(), 400, prompt=[0] * 2048)["code"] == "context_length_exceeded"
    assert refused(client(), 400, prompt="\x01" * 3000)["param"] == "prompt"
    full = client().post("/v1/completions", json={"prompt": [0] * 2047, "temperature": 0})
    assert full.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", 5), ("prompt", None), ("prompt", []), ("prompt", [[]]), ("prompt", ["a", 1]), ("prompt", [1, True]),
        ("prompt", [[1], "a"]), ("prompt", [1.0]), ("prompt", {"text": "a"}), ("prompt", [-1]), ("prompt", [320]),
        ("prompt", [10**30]), ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", "5"),
        ("max_tokens", 10**30), ("temperature", -0.1), ("temperature", 101), ("temperature", "hot"), ("top_p", 1.1),
        ("top_p", -1), ("n", 0), ("n", True), ("n", 10**20), ("stop", ""), ("stop", ["a", ""]), ("stop", 5),
        ("stop", [1]), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", 1.5), ("logprobs", -1), ("logprobs", True),
        ("echo", 1), ("stream", "yes"), ("stream_options", {"include_usage": True}), ("stream_options", 1),
        ("stream_options", {"other": 1}), ("top_k", 0), ("top_k", 10**30), ("min_p", 2), ("repetition_penalty", 0),
        ("repetition_penalty", 1e-9), ("model", 1), ("suffix", "x"), ("best_of", 5),
        ("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 1}), ("logit_bias", [1]),
        ("tools", [{"type": "function"}]), ("ignore_eos", True), ("stop_token_ids", [1]),
        ("response_format", {"type": "json_object"}),
        ("guided_json", {}), ("max_token", 5), ("sampling_probs", 1), ("tool_choice", "required"),
        ("skip_special_tokens", False), ("add_special_tokens", False), ("min_tokens", 2), ("use_beam_search", True),
        ("length_penalty", 2), ("include_stop_str_in_output", True), ("modalities", ["audio"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(client: Client, name: str, value: Any) -> None:
    error = refused(client(), 400, **{name: value})
    assert error["param"] == name
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(name)
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": None, "user": "me"},
        {"best_of": 2, "n": 2, "model": "tiny", "stream_options": None, "suffix": ""},
        dict.fromkeys(name for name in CompletionRequest.model_fields if name != "prompt"),
        {"user": 1, "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x"},
        {"tools": [], "tool_choice": "none", "guided_json": None, "ignore_eos": False, "skip_special_tokens": True},
        {"stream_options": None, "response_format": {"type": "text"}, "stop_token_ids": [], "anything": None},
    ],
)
def test_neutral_values_change_nothing(client: Client, fields: dict[str, Any]) -> None:
    one = client()
    plain = {"prompt": "a", "seed": 1, "n": fields.get("n") or 1}
    expected = one.post("/v1/completions", json=plain).json()["choices"]
    answer = one.post("/v1/completions", json=plain | fields | {"seed": 1, "n": plain["n"]})
    assert answer.json()["choices"] == expected


HARMLESS = (Path(__file__).parent / "data/harmless_fields.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", HARMLESS)
def test_fields_that_clients_send_by_default(client: Client, line: str) -> None:
    answer = client().post("/v1/completions", content=line)
    assert (answer.status_code, len(answer.json()["choices"])) == (200, 1)


def test_a_stream_may_be_asked_without_obfuscation(client: Client) -> None:
    fields = {"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": False, "include_usage": True}}
    answer = client().post("/v1/completions", json=fields)
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/v1/models/tiny"])
def test_head_is_get_without_a_body(client: Client, path: str) -> None:
    one = client()
    head, get = one.head(path), one.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # whose numbers have grown
        assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_compressed_body_is_refused_in_words(client: Client, path: str) -> None:
    body = gzip.compress(b'{"prompt": "a"}')
    answer = client().post(path, content=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert "send JSON uncompressed" in answer.json()["error"]["message"]
    plain = client().post(path, content=b'{"prompt": "a"}', headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_a_model_of_another_path_is_named(client: Client) -> None:
    answer = client().get("/v1/models/meta/llama")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "'tiny'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["The cat", "naïve 你好", "", "one<|endoftext|>two", [1, 2, 3]])
def test_tokens_are_counted_as_they_are_used(client: Client, predictor: Predictor, prompt: str | list[int]) -> None:
    one = client()
    counted = one.post("/tokenize", json={"prompt": prompt, "model": "tiny", "add_special_tokens": True}).json()
    ids = predictor.encode_prompt(prompt) if isinstance(prompt, str) else prompt
    assert counted == {"count": len(ids), "max_model_len": 2048, "tokens": ids}
    used = one.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).json()["usage"]
    assert used["prompt_tokens"] == counted["count"]


@pytest.mark.parametrize("body", [b"{}", b'{"prompt": ["a", "b"]}', b'{"prompt": 1}', b"[]", b"{"])
def test_what_cannot_be_counted(client: Client, body: bytes) -> None:
    answer = client().post("/tokenize", content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_special_tokens_of_a_prompt_can_be_plain_text(client: Client, predictor: Predictor) -> None:
    text, tokenizer = "one<|endoftext|>two", predictor.tokenizer
    one = client(special_tokens=False)
    assert one.post("/tokenize", json={"prompt": text}).json()["tokens"] == tokenizer.encode(
        text, allowed_special=set()
    )
    choice = one.post("/v1/completions", json={"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 0}).json()
    assert choice["choices"][0]["text"] == text
    assert tokenizer.eos_token_id not in choice["choices"][0]["logprobs"]["token_ids"]


def test_other_paths_and_methods_are_told_what_there_is(client: Client) -> None:
    other = client().post("/v1/embeddings", json={})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
    assert "this server has /v1/completions, " in other.json()["error"]["message"]
    chat = client().post("/v1/chat/completions", json={})
    assert (chat.status_code, chat.json()["error"]["code"]) == (404, "not_a_chat_model")
    assert "base model" in chat.json()["error"]["message"] and "/v1/completions" in chat.json()["error"]["message"]
    read = client().get("/v1/completions")
    assert (read.status_code, read.headers["allow"]) == (405, "POST")
    assert "POST for completions" in read.json()["error"]["message"]


def test_an_unknown_model_is_not_found(client: Client) -> None:
    error = refused(client(), 404, model="gpt-4\n")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"a"', "must be a JSON object"),
        (b"\xff", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair is not a character; send both halves"),
        (b'{"prompt": "\\ude00\\ud83d"}', "half of a surrogate pair"),
        (b'{"prompt": "\\ud83d and more"}', "half of a surrogate pair"),
        (b'{"prompt": "\\ud83d\\u0041"}', "half of a surrogate pair"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "begins with a byte-order mark; send plain UTF-8 without it"),
        ('\ufeff{"prompt": "a"}'.encode("utf-16-le"), "begins with a byte-order mark"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: should be a finite number"),
        (b'{"prompt": "a", "top_p": Infinity}', "top_p: "),
        (b'{"prompt": "a", "seed": 1e400}', "seed: "),
        (b'{"prompt": "a", "frequency_penalty": NaN}', "frequency_penalty: "),
        (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"prompt": [NaN]}', "prompt: "),
        (b"{}", "prompt: is missing"),
        (b'{"prompt": "a", "\\u001b[31m\\n": 1}', "\\x1b[31m\\n: unknown field"),
    ],
)
def test_what_is_no_request(client: Client, body: bytes, words: str) -> None:
    answer = client().post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*CompletionRequest.model_fields, "other"]), JSON, max_size=5),
    st.sampled_from(["a", [1], [[1]], ["a"]]),
)
def test_any_json_is_a_request_or_an_error_of_the_client(fields: dict[str, Any], prompt: Any) -> None:
    body = json.dumps({"prompt": prompt, **fields}).encode("utf-8")
    try:
        request = parse_request(body)
    except ApiError as error:
        assert error.status == 400
        assert error.message.isprintable()
    else:
        assert isinstance(request.sampling(0), SamplingHparams)


def test_paths_and_methods_that_are_not_there(client: Client) -> None:
    for answer, status in ((client().get("/nothing"), 404), (client().get("/v1/completions"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert client().get("/docs").status_code == client().get("/openapi.json").status_code == 404
