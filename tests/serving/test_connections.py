"""Clients who misbehave on their connection, against a server with short limits on a real socket."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import pytest

Live = Callable[..., str]
PATIENCE = 20.0
HEADER = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
LONG = {"prompt": "The cat", "max_tokens": 2000, "temperature": 0}


def connect(address: str, *, receive_buffer: int | None = None) -> socket.socket:
    parts = urlsplit(address)
    assert parts.hostname is not None
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE)
    connection.connect((parts.hostname, parts.port))
    return connection


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def read_answer(connection: socket.socket) -> bytes:
    """Read an answer of known length."""
    data = b""
    while not (found := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", data, re.DOTALL)) or len(
        data
    ) < found.end() + int(found[1]):
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def trickle(connection: socket.socket, data: Iterator[bytes]) -> float:
    """Send a byte every 50 ms until the server closes the connection; return after how many seconds it did."""
    start = time.monotonic()
    connection.settimeout(0.05)
    for byte in data:
        assert time.monotonic() - start < PATIENCE, "the connection stays open"
        try:
            connection.sendall(byte)
            if not connection.recv(65536):
                return time.monotonic() - start
        except TimeoutError:
            continue
        except ConnectionError:
            return time.monotonic() - start
    raise AssertionError("the connection stays open")


def endless(data: bytes = b"x") -> Iterator[bytes]:
    while True:
        yield data


def metric(address: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_a_header_that_comes_a_byte_at_a_time(live: Live) -> None:
    with closing(connect(live(header_seconds=0.4))) as connection:
        connection.sendall(HEADER + b"X: ")
        trickle(connection, endless())


def test_a_slow_header_on_a_connection_that_was_used(live: Live) -> None:
    with closing(connect(live(header_seconds=0.4, keep_alive_seconds=60))) as connection:
        for _ in range(2):
            connection.sendall(HEADER + b"\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
        trickle(connection, endless(b"G"))


def test_empty_lines_are_no_header(live: Live) -> None:
    with closing(connect(live(header_seconds=0.4))) as connection:
        trickle(connection, endless(b"\r\n"))


def test_a_client_who_says_nothing(live: Live) -> None:
    with closing(connect(live(header_seconds=0.4))) as connection:
        assert connection.recv(1) == b""


def test_an_idle_connection_is_closed(live: Live) -> None:
    with closing(connect(live(keep_alive_seconds=1))) as connection:
        connection.sendall(HEADER + b"\r\n")
        read_answer(connection)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_a_body_that_comes_a_byte_at_a_time(live: Live, length: bytes) -> None:
    with closing(connect(live(body_seconds=0.4))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
        trickle(connection, endless(b"1\r\nx\r\n" if b"chunked" in length else b" "))


def test_a_slow_body_that_nobody_waits_for(live: Live) -> None:
    with closing(connect(live(body_seconds=0.4, keep_alive_seconds=60))) as connection:
        connection.sendall(HEADER + b"Content-Length: 1000000\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        trickle(connection, endless())


def test_a_header_that_is_too_long(live: Live) -> None:
    with closing(connect(live(header_bytes=2000))) as connection:
        connection.sendall(HEADER + b"X: " + b"x" * 100_000)
        assert connection.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_long_body_is_refused_over_a_socket(live: Live, in_pieces: bool) -> None:
    body = b" " * 300_000
    pieces = (body[begin : begin + 1000] for begin in range(0, len(body), 1000))
    answer = httpx.post(f"{live(body_bytes=100_000)}/v1/completions", content=pieces if in_pieces else body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_connections_beyond_the_limit_are_closed(live: Live) -> None:
    address = live(connections=3)
    wait_until(lambda: httpx.get(f"{address}/health").status_code == 200)
    held = [connect(address) for _ in range(3)]
    held[0].sendall(HEADER + b"\r\n")
    read_answer(held[0])  # by now the server has taken all three
    with closing(connect(address)) as one_more:
        answer = b""
        while piece := one_more.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    for connection in held:
        connection.close()
    wait_until(lambda: connect_and_ask(address) == 200)


def connect_and_ask(address: str) -> int:
    return httpx.get(f"{address}/health").status_code


def test_what_is_no_http_is_refused_without_a_word_of_it(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    with closing(connect(live())) as connection:
        connection.sendall(b"\x1b[31m forged\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"
    assert "forged" not in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_goes_frees_its_slots(live: Live, stream: bool) -> None:
    address = live(slots=2, queue=2)
    body = json.dumps(LONG | {"n": 4, "stream": stream}).encode()
    with closing(connect(address)) as connection:
        connection.sendall(post(body))
        wait_until(lambda: metric(address, "transformerlm_generated_tokens_total") > 0)
        assert metric(address, "transformerlm_running") == 2
        assert metric(address, "transformerlm_queue_length") == 2
    wait_until(lambda: metric(address, "transformerlm_running") == 0)
    assert metric(address, "transformerlm_queue_length") == 0
    assert metric(address, "transformerlm_generated_tokens_total") < 4 * 2000
    assert httpx.post(f"{address}/v1/completions", json={"prompt": "a", "n": 4}).status_code == 200


def test_a_full_queue_is_said_at_once(live: Live) -> None:
    address = live(slots=1, queue=1, retry_after_seconds=7)
    with httpx.stream("POST", f"{address}/v1/completions", json=LONG | {"n": 2, "stream": True}) as running:
        assert running.status_code == 200
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert (answer.json()["error"]["code"], answer.json()["error"]["type"]) == ("queue_full", "rate_limit_error")
    wait_until(lambda: httpx.post(f"{address}/v1/completions", json={"prompt": "a"}).status_code == 200)


def test_a_request_that_takes_too_long_ends_in_an_error(live: Live) -> None:
    address = live(slots=1, request_seconds=0.2)
    answer = httpx.post(f"{address}/v1/completions", json=LONG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    answer = httpx.post(f"{address}/v1/completions", json=LONG | {"stream": True})
    *chunks, last, end = answer.text.split("\n\n")
    assert (answer.status_code, end) == (200, "")
    assert json.loads(chunks[0].removeprefix("data: "))["choices"]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"
    wait_until(lambda: metric(address, "transformerlm_running") == 0)


def never_read(address: str) -> socket.socket:
    """A client who asks for far more than sockets hold, and takes nothing of it."""
    connection = connect(address, receive_buffer=4096)
    body = json.dumps(LONG | {"n": 8, "stream": True, "logprobs": 20}).encode()
    connection.sendall(post(body))
    return connection


def test_a_client_who_does_not_read_holds_no_slot_beyond_its_time(live: Live) -> None:
    address = live(request_seconds=0.5, send_seconds=60.0)
    with closing(never_read(address)):
        wait_until(lambda: metric(address, "transformerlm_generated_tokens_total") > 0)
        wait_until(lambda: metric(address, "transformerlm_running") == 0)
        assert metric(address, "transformerlm_generated_tokens_total") < 8 * 2000


def test_a_client_who_does_not_read_is_dropped(live: Live) -> None:
    address = live(send_seconds=0.5)
    with closing(never_read(address)) as connection:
        wait_until(lambda: metric(address, "transformerlm_generated_tokens_total") > 0)
        wait_until(lambda: metric(address, "transformerlm_running") == 0)
        assert metric(address, "transformerlm_generated_tokens_total") < 8 * 2000
        received = b""
        while piece := connection.recv(1 << 20):  # what was under way; then the end
            received += piece
    assert received.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in received


def test_a_client_who_goes_after_one_more_byte_frees_its_slot(live: Live) -> None:
    address = live()
    with closing(connect(address)) as connection:
        connection.sendall(post(json.dumps(LONG).encode()))
        wait_until(lambda: metric(address, "transformerlm_running") == 1)
        connection.sendall(b"GET")
    wait_until(lambda: metric(address, "transformerlm_running") == 0)
    assert metric(address, "transformerlm_generated_tokens_total") < LONG["max_tokens"]


def test_requests_sent_ahead_are_answered_in_turn_but_not_without_end(live: Live) -> None:
    address = live(header_bytes=1000)
    short = post(json.dumps({"prompt": "The cat", "max_tokens": 2}).encode())
    with closing(connect(address)) as connection:
        connection.sendall(short)
        connection.sendall(short + HEADER + b"\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        wait_until(lambda: metric(address, "transformerlm_generated_tokens_total") == 4)
    with closing(connect(address)) as connection:
        connection.sendall(post(json.dumps(LONG).encode()))
        time.sleep(0.2)
        with pytest.raises(ConnectionError):
            for _ in range(100):
                connection.sendall(HEADER * 100)
                time.sleep(0.01)


def test_a_body_without_end_that_nobody_reads(live: Live) -> None:
    address = live()
    with closing(connect(address)) as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"5\r\nabcde\r\n")
        answer = read_answer(connection)
        assert answer.startswith(b"HTTP/1.1 405")
        assert b"connection: close" in answer.lower()
        assert connection.recv(100) == b""


def test_who_asks_before_a_body_that_is_too_long_hears_it_at_once(live: Live) -> None:
    address = live(body_seconds=15)
    with closing(connect(address)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n"
        start = time.monotonic()
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 413")
        assert time.monotonic() - start < 10
