"""The real client of OpenAI against a server process, and what many such clients at once do to it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("openai", reason="needs openai: uv sync --group peers")

import openai

from transformerlm.hparams import SamplingHparams
from transformerlm.inference.predictor import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SLOTS = 8
TOKENS = 60


@pytest.fixture
def client(process: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{process.address}/v1", api_key="none", max_retries=0, timeout=60) as one:
        yield one


def test_the_model_has_the_name_of_its_run(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["random-stories"]
    assert client.models.retrieve("random-stories").id == "random-stories"


def test_a_greedy_answer_is_the_predictors(client: openai.OpenAI, predictor: Predictor) -> None:
    [expected] = predictor.complete(["The cat"], SamplingHparams(temperature=0.0, max_new_tokens=40))
    answer = client.completions.create(model="random-stories", prompt="The cat", max_tokens=40, temperature=0)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == len(expected.prompt_ids) + 40


def test_a_stream_joins_to_the_answer(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "random-stories", "prompt": "The cat", "max_tokens": 40, "n": 3, "seed": 4}
    whole = client.completions.create(**fields)
    texts, usage = ["", "", ""], None
    for chunk in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="random-stories", prompt="The cat", max_tokens=3, logprobs=2, echo=True, stop=["\x00\x00"], seed=1
    )
    choice = answer.choices[0]
    assert choice.text.startswith("The cat")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens).startswith("The cat")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="random-stories", prompt="a", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="a")
    assert missing.value.code == "model_not_found"


def test_a_token(start_process: Callable[..., Any]) -> None:
    guarded = start_process(token="a-long-s3cret")
    for key, works in (("a-long-s3cret", True), ("wrong", False)):
        with openai.OpenAI(base_url=f"{guarded.address}/v1", api_key=key, max_retries=0, timeout=60) as one:
            if works:
                assert one.completions.create(model="random-stories", prompt="a").choices
            else:
                with pytest.raises(openai.AuthenticationError):
                    one.models.list()
    assert "a-long-s3cret" not in guarded.said()
    assert "wrong" not in guarded.said()


async def lines(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream, which must end as it should."""
    last = ""
    async for line in answer.aiter_lines():
        last = line or last
        if line and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))
    assert last == "data: [DONE]"


async def write(client: httpx.AsyncClient, number: int) -> str:
    """Ask for a stream, read it to its end; return what became of it."""
    fields = {"prompt": f"Story {number}", "max_tokens": TOKENS, "temperature": 0, "logprobs": 5, "stream": True}
    async with client.stream("POST", "/v1/completions", json=fields) as answer:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert json.loads(await answer.aread())["error"]["code"] == "queue_full"
            return "429"
        assert answer.status_code == 200
        choices = [choice async for event in lines(answer) for choice in event["choices"]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (TOKENS - 1) + ["length"]
    assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == TOKENS
    return "whole"


async def drive(address: str, *, clients: int, rounds: int) -> Counter[str]:
    """Let clients ask at once, each `rounds` times one after the other."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:

        async def one(number: int) -> list[str]:
            return [await write(client, number * rounds + turn) for turn in range(rounds)]

        outcomes = await asyncio.gather(*(one(number) for number in range(clients)))
    return Counter(outcome for of_one in outcomes for outcome in of_one)


def test_many_more_clients_than_slots(process: Any) -> None:
    """Every request ends whole or is refused, none hangs, and memory does not grow with their number."""
    resident, seen = [], Counter[str]()
    for _ in range(3):
        outcomes = asyncio.run(asyncio.wait_for(drive(process.address, clients=40, rounds=3), 100))
        assert outcomes["whole"] + outcomes["429"] == 120
        assert outcomes["whole"] >= SLOTS + 8  # the slots and the queue
        seen += outcomes
        resident.append(process.resident_bytes())
    assert seen["429"] > 0
    assert process.metric("transformerlm_running") == process.metric("transformerlm_queue_length") == 0
    print(f"{dict(seen)}, resident {[f'{size / 1e6:.0f} MB' for size in resident]}")
    assert resident[2] <= resident[1] + 8_000_000
    assert "Traceback" not in process.said()


def test_a_burst_of_clients_with_default_retries_is_served_whole(start_process: Callable[..., Any]) -> None:
    """Retry-After fits the queue, so that a client's two retries suffice."""
    burst = start_process()

    async def all_at_once() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{burst.address}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.completions.create(
                        model="random-stories", prompt=f"Story {number}", max_tokens=TOKENS, seed=1
                    )
                    for number in range(120)
                )
            )
        return [answer.choices[0].finish_reason for answer in answers]

    reasons = asyncio.run(asyncio.wait_for(all_at_once(), 150))
    assert len(reasons) == 120
    assert set(reasons) <= {"stop", "length"}


def test_eight_streams_share_the_engines_steps(process: Any) -> None:
    """Aggregate throughput: tokens for each step, which does not depend on how busy the machine is."""
    per_step = []
    for clients in (1, SLOTS):
        names = ("transformerlm_generated_tokens_total", "transformerlm_engine_steps_total")
        before = [process.metric(name) for name in (*names, "transformerlm_time_per_token_seconds_sum")]
        assert asyncio.run(asyncio.wait_for(drive(process.address, clients=clients, rounds=4), 100))["whole"] > 0
        after = [process.metric(name) for name in (*names, "transformerlm_time_per_token_seconds_sum")]
        tokens, steps, seconds = (now - then for now, then in zip(after, before, strict=True))
        per_step.append(tokens / steps)
        print(f"{clients} streams: {tokens / steps:.2f} tokens a step, {tokens / seconds:,.0f} tokens/s in the engine")
    assert per_step[0] == 1
    assert per_step[1] >= 3 * per_step[0]
