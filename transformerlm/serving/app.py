"""The app: routes, the worker's life, and the guards around them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, final

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from transformerlm.inference.predictor import Predictor
from transformerlm.serving.errors import ApiError
from transformerlm.serving.guards import AccessLog, BearerToken, BodyLimit, TrustedHosts
from transformerlm.serving.metrics import Metrics
from transformerlm.serving.page import Page
from transformerlm.serving.protocol import TokenizeRequest, parse_request, printable
from transformerlm.serving.service import CompletionService, EventSource
from transformerlm.serving.settings import LimitsHparams, ServerHparams
from transformerlm.serving.worker import Worker

_CLIENT_HAS_GONE = 499
"""nginx's number for it; only the log sees it."""


@final
class App:
    """The ASGI application of one model, and the worker behind it."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        name: str,
        slots: int,
        server: ServerHparams,
        limits: LimitsHparams,
        token: str | None = None,
    ) -> None:
        """Take memory for `slots` continuations at a time. Clients call the model `name`, and need `token` if given."""
        self._model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "transformerlm"}
        self._model["context_length"] = predictor.model.context_length
        self._page = Page.load()
        self._metrics = Metrics()
        self.worker = Worker(
            predictor.new_engine(slots), predictor.tokenizer, room=slots + limits.queue, metrics=self._metrics
        )
        self._service = CompletionService(
            predictor,
            self.worker,
            name=name,
            limits=limits,
            metrics=self._metrics,
            special_tokens=server.special_tokens,
        )
        self.asgi = self._assemble(server, limits, token)

    def _assemble(self, server: ServerHparams, limits: LimitsHparams, token: str | None) -> FastAPI:
        bound = f"[{server.host}]" if ":" in server.host else server.host
        guards = [Middleware(AccessLog, self._metrics)]
        if token is None:
            trusted = ["localhost", "127.0.0.1", "[::1]", bound, *server.trusted_hosts]
            guards.append(Middleware(TrustedHosts, trusted))
        else:  # a page of another site does not know it, whatever name it calls this machine by
            guards.append(Middleware(BearerToken, token))
        guards.append(Middleware(BodyLimit, limits.body_bytes))
        # FastAPI's own pages of documentation load scripts from elsewhere
        app = FastAPI(lifespan=self._lifespan, middleware=guards, docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(ApiError, _answer_api_error)
        app.add_exception_handler(HTTPException, _answer_http_error)
        app.add_exception_handler(ClientDisconnect, _answer_nobody)
        app.add_exception_handler(Exception, _answer_bug)
        for path, endpoint in {
            "/v1/completions": self._complete,
            "/v1/chat/completions": self._refuse_chat,
            "/tokenize": self._tokenize,
        }.items():
            app.add_api_route(path, endpoint, methods=["POST"])
        for path, endpoint in {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._one_model,
            "/health": self._health,
            "/metrics": self._show_metrics,
            "/": self._playground,
        }.items():
            app.add_api_route(path, endpoint, methods=["GET", "HEAD"])
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.worker.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.to_thread(self.worker.stop)

    async def _complete(self, request: Request) -> Response:
        asked = parse_request(await _plain_body(request))
        if asked.stream:
            return EventStream(await self._service.start_stream(asked))
        answer = await until_disconnect(request.receive, self._service.answer(asked))
        return (
            Response(status_code=_CLIENT_HAS_GONE) if answer is None else await asyncio.to_thread(JSONResponse, answer)
        )

    async def _refuse_chat(self) -> Response:
        message = "this is a base model, which continues text and knows no chat; send a prompt to /v1/completions"
        raise ApiError(404, message, code="not_a_chat_model")

    async def _tokenize(self, request: Request) -> Response:
        """Count the tokens of a prompt, with the fields of vLLM's path of this name."""
        asked = parse_request(await _plain_body(request), TokenizeRequest)
        return JSONResponse(await self._service.count_tokens(asked))

    async def _models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._model]})

    async def _one_model(self, name: str) -> Response:
        if name != self._model["id"]:
            raise ApiError(404, f"model: the one served here is {self._model['id']!r}", code="model_not_found")
        return JSONResponse(self._model)

    async def _health(self) -> Response:
        if not self.worker.is_alive:
            raise ApiError(503, "the engine has ended", code="engine_ended")
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self) -> Response:
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def _playground(self) -> Response:
        return self._page.response()


async def _plain_body(request: Request) -> bytes:
    """Return the body; raise `ApiError` (415) if it is compressed."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        message = f"bodies are not accepted with Content-Encoding {printable(encoding)}; send JSON uncompressed"
        raise ApiError(415, message, code="unsupported_encoding")
    return await request.body()


@final
class EventStream(Response):
    """An answer that goes on until its events end or the client has gone."""

    def __init__(self, source: EventSource) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope

        async def send_bytes(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def send_all() -> bool:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._source.send_to(send_bytes)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True

        try:
            await until_disconnect(receive, send_all())
        finally:
            self._source.close()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what `work` returns; when the client goes before, cancel it and return None.

    The body must have been read, so that all that still comes is the news that the client has gone.
    """

    async def wait_for_end() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    watching = asyncio.create_task(wait_for_end())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _answer_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    paths = ", ".join(route.path for route in request.app.routes)
    code, message = {
        404: ("not_found", f"there is no such path; this server has {paths}"),
        405: (
            "method_not_allowed",
            "this path has another method: POST for completions and /tokenize, else GET and HEAD",
        ),
    }.get(error.status_code, (None, error.detail))
    return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).to_response()


async def _answer_nobody(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_HAS_GONE)


async def _answer_bug(_request: Request, _error: Exception) -> Response:
    return ApiError(500, "the server made a mistake; its log says more", code="internal_error").to_response()
