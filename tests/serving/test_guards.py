"""Whom the server lets in, what it takes, and what it says in its log and headers."""

import base64
import hashlib
import logging
import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from transformerlm.serving.page import Page
from transformerlm.serving.server import EscapingFormatter
from transformerlm.serving.settings import ServerHparams, is_loopback, resolve_token
from transformerlm.utils.errors import ConfigError

Client = Callable[..., TestClient]
ASK = {"prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/nothing"])
def test_with_a_token_every_path_needs_it(client: Client, path: str) -> None:
    one = client(token="s3cret")
    for header in (None, "s3cret", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crett", "Basic s3cret", "Bearer é"):
        headers = {} if header is None else {"Authorization": header.encode("utf-8")}
        answer = one.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "s3cret" not in answer.text
    for scheme in ("Bearer", "bearer"):
        assert one.get(path, headers={"Authorization": f"{scheme} s3cret"}).status_code != 401


def test_the_page_and_the_health_check_need_no_token(client: Client) -> None:
    one = client(token="s3cret")
    assert one.get("/health").status_code == 200
    assert one.get("/").status_code != 401
    assert one.post("/v1/completions", json=ASK, headers={"Authorization": "Bearer s3cret"}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1"])
def test_names_of_this_machine_are_trusted(client: Client, host: str) -> None:
    assert client().get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", "", "[::2]", "*"])
def test_other_names_are_refused(client: Client, host: str) -> None:
    answer = client().post("/v1/completions", json=ASK, headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "untrusted_host")


def test_names_can_be_added(client: Client) -> None:
    one = client(host="10.0.0.5", trusted_hosts=("model.example",))
    for host, status in (("10.0.0.5:80", 200), ("model.example", 200), ("other.example", 403)):
        assert one.get("/health", headers={"Host": host}).status_code == status
    assert client(host="fe80::5").get("/health", headers={"Host": "[fe80::5]:80"}).status_code == 200
    assert client(trusted_hosts=("*",)).get("/health", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize("host", ["model.example", "10.0.0.5:8000", "evil.example"])
def test_with_a_token_every_name_is_served(client: Client, host: str) -> None:
    one = client(token="s3cret", host="0.0.0.0")
    headers = {"Host": host, "Authorization": "Bearer s3cret", "Origin": f"https://{host}"}
    assert one.post("/v1/completions", json=ASK, headers=headers).status_code == 200
    assert one.post("/v1/completions", json=ASK, headers={"Host": host}).status_code == 401
    assert one.post("/tokenize", json=ASK, headers={"Host": host}).status_code == 401


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9000", "http://localhost:8000", "null"])
def test_a_page_of_another_site_is_refused(client: Client, origin: str) -> None:
    answer = client().post("/v1/completions", json=ASK, headers={"Origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "untrusted_origin")


def test_no_other_site_may_read_an_answer(client: Client) -> None:
    one = client()
    answer = one.post("/v1/completions", json=ASK, headers={"Origin": "http://127.0.0.1:8000"})
    assert answer.status_code == 200
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for one_answer in (answer, one.options("/v1/completions", headers=asked)):
        assert not [name for name in one_answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_that_is_too_long(client: Client, in_pieces: bool) -> None:
    one = client(body_bytes=1000)
    body = b'{"prompt": "a", "max_tokens": 1}'
    assert one.post("/v1/completions", content=body.ljust(1000)).status_code == 200
    content = (b" " * 100 for _ in range(11)) if in_pieces else body.ljust(1001)
    answer = one.post("/v1/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_what_a_request_holds_reaches_the_log_escaped(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "transformerlm.serving"):
        one = client()
        one.get("/x%0a%1b[31mforged%20line%e2%80%a8%7f")
        one.post("/v1/completions", json={"prompt": "a secret prompt", "max_tokens": 1})
        one.post("/v1/completions", json={"prompt": "a secret prompt", "model": "a\nsecret"})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("transformerlm")]
    assert re.fullmatch(r'testclient "GET /x\\n\\u001b\[31mforged line\\u2028\\u007f" 404 \d+ ms', lines[0])
    assert [re.sub(r"\d+ ms", "", line) for line in lines[1:]] == [
        'testclient "POST /v1/completions" 200 ',
        'testclient "POST /v1/completions" 404 ',
    ]
    assert "secret" not in "".join(lines)


def test_the_log_of_a_process_escapes_what_others_write_to_it() -> None:
    formatter = EscapingFormatter("%(message)s")
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\x1b[31m\r\u2028b\udc80 %s", ("c\x00",), None)
    assert formatter.format(record) == "a\\x1b[31m\\r\\u2028b\\udc80 c\\x00"


def test_a_mistake_of_the_server_is_an_error_in_its_form(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformerlm.serving.page.Page.response", lambda _: {}["a secret"])
    answer = client().get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_only_the_pages_own_script_and_style_may_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    html = '<!doctype html><style>p{}</style><script type="module">go(\r\n)</script ><SCRIPT>\n</SCRIPT>'
    monkeypatch.setattr("transformerlm.serving.app.Page.load", lambda: Page(html))
    answer = client().get("/")
    assert (answer.status_code, answer.text) == (200, html)
    digests = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode() + "'"
        for text in (b"go(\n)", b"\n", b"p{}")
    ]
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": f"{digests[0]} {digests[1]}",
        "style-src": digests[2],
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_without_the_page_the_rest_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformerlm.serving.app.Page.load", lambda: Page(None))
    assert client().get("/").status_code == 404
    assert client().post("/v1/completions", json=ASK).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "model.example", "::ffff:1.2.3.4"])
def test_another_host_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"can be reached from other machines.* set the environment variable"):
        resolve_token(ServerHparams(host=host), None)
    assert resolve_token(ServerHparams(host=host), "abc") == "abc"


def test_the_token_of_the_settings_goes_before_the_variable() -> None:
    settings = ServerHparams.model_validate({"token": "mine"})
    assert resolve_token(settings, "other") == "mine"
    assert resolve_token(ServerHparams(), None) is None
    assert "mine" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    for unusable in ("", "a b", "é", "a\n"):
        with pytest.raises(ConfigError, match="TRANSFORMERLM_TOKEN must be printable ASCII"):
            resolve_token(ServerHparams(), unusable)
        [problem] = ServerHparams.model_validate({"token": unusable}).problems()
        assert (problem.key, problem.got) == ("token", "a secret")


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("x", False)]
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_only_this_machine_can_reach_a_server_of_whom_nothing_else_is_said() -> None:
    assert is_loopback(ServerHparams().host)
