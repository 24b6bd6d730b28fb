"""Connections of clients who are too slow, or too many, are closed; uvicorn by itself waits for them forever.

    IDLE ──first byte──▶ header ──▶ body ──▶ answer ──▶ IDLE, for `keep_alive_seconds`
            header_seconds ┘  body_seconds ┘      └ send_seconds for the client to take what was sent

The time runs for a header or a body as a whole, from its first byte, however many bytes come in between.
"""

import asyncio
from typing import Any, ClassVar, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from transformerlm.serving.errors import ApiError
from transformerlm.serving.settings import LimitsHparams

_Phase = Literal["header", "body"]
_LINGER_SECONDS = 1.0
"""After closing, what is still to be sent has so long to go."""


def guarded_protocol(limits: LimitsHparams) -> type[H11Protocol]:
    """Return a protocol class for uvicorn that keeps to `limits`."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with a clock; its base class is uvicorn's way to be extended."""

    limits: ClassVar[LimitsHparams]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._phase: _Phase | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._ahead = b""  # what came before the answer to the request before it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there is room for it."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that the clock runs for every byte that is not taken
        if len(self.connections) > self.limits.connections:
            transport.write(_TOO_MANY)
            self._drop()
            return
        self._watch("header")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._watch(None)
        self._stop_writing_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self.transport.is_closing():
            return
        if self._is_answering():
            # uvicorn would stop reading now, and not see when the client goes
            self._ahead += data
            if len(self._ahead) > self.limits.header_bytes:
                self.transport.abort()
            return
        super().data_received(data)
        self._watch(self._find_phase(is_idle=False))

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        super().on_response_complete()
        self._watch(self._find_phase(is_idle=True))
        if self._ahead and not self.transport.is_closing():
            ahead, self._ahead = self._ahead, b""
            self.data_received(ahead)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle."""
        super().timeout_keep_alive_handler()
        self._drop()

    def pause_writing(self) -> None:
        """Wait for a client who does not take its answer, but not forever."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client takes its answer."""
        self._stop_writing_clock()
        super().resume_writing()

    def _is_answering(self) -> bool:
        """Return whether a request has come whole and its answer has not gone."""
        return self.cycle is not None and not self.cycle.response_complete and self.conn.their_state is h11.DONE

    def _find_phase(self, *, is_idle: bool) -> _Phase | None:
        """Return what is being read; between two requests there is nothing to wait for but uvicorn's own time."""
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE and not is_idle:
            return "header"
        return None

    def _watch(self, phase: _Phase | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        if phase is not None:
            seconds = self.limits.header_seconds if phase == "header" else self.limits.body_seconds
            self._reading = self.loop.call_later(seconds, self._drop)

    def _stop_writing_clock(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _drop(self) -> None:
        """Close the connection: at once, or, if something is still to be sent, a little later."""
        self._watch(None)
        self.transport.close()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


_TOO_MANY_BODY = ApiError(503, "too many connections are open; try again later", code="too_many_connections")
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
    + b"content-length: %d\r\n\r\n%s" % (len(_TOO_MANY_BODY.to_response().body), _TOO_MANY_BODY.to_response().body)
)
