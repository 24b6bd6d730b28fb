"""The end of a server process: it lets running requests finish, but not forever."""

import json
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

Start = Callable[..., Any]
LONG = {"prompt": "The cat", "max_tokens": 2000, "temperature": 0, "stream": True}


def test_sigterm_lets_a_stream_finish_and_takes_no_more(start_process: Start) -> None:
    server = start_process()
    with httpx.stream("POST", f"{server.address}/v1/completions", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        server.signal(signal.SIGTERM)
        refused = False
        rest = []
        for line in lines:
            rest.append(line)
            if not refused and len(rest) % 20 == 0:
                try:
                    httpx.get(f"{server.address}/health", timeout=20)
                except httpx.ConnectError:
                    refused = True
    assert refused
    assert rest[-2:] == ["data: [DONE]", ""]
    assert server.wait() == 143
    assert "Traceback" not in server.said()


def test_a_request_that_does_not_finish_in_time_ends_in_an_error(start_process: Start) -> None:
    server = start_process("--server.drain-seconds", 0.1)
    with httpx.stream("POST", f"{server.address}/v1/completions", json=LONG | {"n": 8}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["message"] == "the server is shutting down"
    assert server.wait() == 143
    assert "Traceback" not in server.said()


def test_ctrl_c_ends_it_too(start_process: Start) -> None:
    server = start_process()
    server.signal(signal.SIGINT)
    assert server.wait() == 130
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(start_process: Start, number: signal.Signals) -> None:
    server = start_process("--server.drain-seconds", 1000)
    # a client who does not read, so that the request does not end by itself
    with httpx.stream("POST", f"{server.address}/v1/completions", json=LONG | {"n": 8, "logprobs": 20}) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        server.signal(number)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal(number)
        assert server.wait() == 128 + number


def test_the_first_line_says_how_to_try_it_and_the_log_is_escaped(start_process: Start) -> None:
    server = start_process("--model.name", "tiny")
    line = server.said().splitlines()[0]
    found = re.fullmatch(r"serving 'tiny' at (\S+); try: curl (\S+) -d '(.*)'", line)
    assert found
    assert found[1] == server.address
    assert httpx.post(found[2], content=found[3], timeout=30).json()["usage"]["completion_tokens"] > 0
    httpx.get(f"{server.address}/%0aforged%1b[31m")
    server.signal(signal.SIGTERM)
    assert server.wait() == 143
    assert "\x1b" not in server.said()
    assert "Once upon" not in "".join(server.said().splitlines()[1:])
    requests = [entry for entry in server.said().splitlines() if " INFO 127.0.0.1 " in entry]
    assert any('"GET /\\\\nforged' in entry or '"GET /\\nforged' in entry for entry in requests)
    assert server.process.stdout.read() == b""
