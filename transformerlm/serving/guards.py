"""ASGI layers around the app: who may ask, how much may be sent, and a line of log for each request.

A web page on another site can have its reader's browser send requests to this machine. What refuses them: the Host
header must name this machine (a name that an attacker's DNS moves here does not), and a request that a page sends
must come from a page of this server (Origin); no CORS header lets another page read an answer.
"""

import hmac
import json
import logging
import time
from collections.abc import Sequence
from typing import final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transformerlm.serving.errors import ApiError
from transformerlm.serving.metrics import Metrics

_access_log = logging.getLogger("transformerlm.serving.access")
_OPEN_PATHS = frozenset({"/", "/health"})
_CLOSE = {"Connection": "close"}
_DISCARDED = 4
"""So many times the limit is read of a body that is too long."""


@final
class AccessLog:
    """Logs a line for each request, in which everything from the client is JSON, and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        status, has_failed = 0, True  # 0: none was sent, since the client has gone

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
            has_failed = False
        finally:
            status = status or 500 * has_failed
            self._metrics.observe_request(status)
            milliseconds = (time.perf_counter() - start) * 1e3
            client, request = scope.get("client"), json.dumps(f"{scope['method']} {scope['path']}"[:512])
            _access_log.info("%s %s %d %.0f ms", client[0] if client else "-", request, status, milliseconds)
        return None


@final
class TrustedHosts:
    """Refuses requests that call this machine by an unknown name, and those sent by another site's page."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """`hosts` are names without a port; `*` stands for all."""
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._error(Headers(scope=scope))) is not None:
            return await error.to_response()(scope, receive, send)
        return await self._app(scope, receive, send)

    def _error(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "").lower()
        if "*" not in self._hosts and _without_port(host) not in self._hosts:
            message = "the Host header names a machine that is not trusted; see the server's setting trusted_hosts"
            return ApiError(403, message, code="untrusted_host", headers=_CLOSE)
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host:
            message = "requests of another site's page are refused"
            return ApiError(403, message, code="untrusted_origin", headers=_CLOSE)
        return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


@final
class BearerToken:
    """Refuses requests without the token, but for the page, which asks for it, and the health check."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._is_known(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        message = "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`"
        headers = {"WWW-Authenticate": "Bearer", **_CLOSE}
        return await ApiError(401, message, code="invalid_api_key", headers=headers).to_response()(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        shown = f"{scheme.lower()} {given.strip()}".encode()
        return hmac.compare_digest(shown, self._expected)  # in a time that does not tell how much of it is right


@final
class BodyLimit:
    """Refuses bodies that are too long, whether they say so before or turn out to be."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """`limit` is in bytes."""
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        announced = int(headers.get("content-length", "0"))  # h11 has seen that these are digits
        if announced > self._limit:
            if "expect" not in headers:  # who expects a word before the body has not begun to send it
                await self._discard(receive, more=True)
            return await self._error().to_response()(scope, receive, send)
        received, is_whole = 0, not announced and "transfer-encoding" not in headers

        async def counted_receive() -> Message:
            nonlocal received, is_whole
            message = await receive()
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > self._limit:
                await self._discard(receive, more=message.get("more_body", False))
                raise self._error()
            return message

        async def closing_send(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_whole:  # a body that nobody wants may have no end
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        return await self._app(scope, counted_receive, closing_send)

    def _error(self) -> ApiError:
        return ApiError(413, f"the body may have at most {self._limit:,} bytes", code="body_too_large", headers=_CLOSE)

    async def _discard(self, receive: Receive, *, more: bool) -> None:
        """Read on a little: a client who is still sending when the connection is closed does not see the answer."""
        received = 0
        while more and received < _DISCARDED * self._limit:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
