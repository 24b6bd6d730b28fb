"""The server's process: its socket, its log, and its end when a signal comes."""

import asyncio
import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator
from types import FrameType
from typing import final

import uvicorn

from transformerlm.serving.app import App
from transformerlm.serving.connections import guarded_protocol
from transformerlm.serving.protocol import escaped
from transformerlm.serving.settings import LimitsHparams, ServerHparams
from transformerlm.serving.worker import GenerationError, Worker
from transformerlm.utils.errors import ConfigError

_GRACE_SECONDS = 2
"""After the time to drain: for the errors in which requests end then to reach their clients."""


@final
class Server:
    """A server of one app. It listens from the beginning, so that its address is known; `run` answers."""

    def __init__(self, app: App, server: ServerHparams, limits: LimitsHparams) -> None:
        """Raises `ConfigError` if the address cannot be listened at."""
        self._worker = app.worker
        self._listener = _listen(server.host, server.port)
        self._uvicorn = _Uvicorn(_configure(app, server, limits), app.worker, server.drain_seconds)

    @property
    def address(self) -> str:
        """Where clients reach it, `http://127.0.0.1:8000`."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until SIGTERM, Ctrl-C or `stop`, let running requests finish, and raise the signal again, if any.

        A second signal ends at once.
        """
        try:
            self._uvicorn.run(sockets=[self._listener])
        finally:
            self._listener.close()
            self._worker.stop()

    def stop(self) -> None:
        """Ask `run` to end as a signal does; for any thread."""
        self._uvicorn.should_exit = True


def _configure(app: App, server: ServerHparams, limits: LimitsHparams) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi, http=guarded_protocol(limits), ws="none", lifespan="on", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, timeout_keep_alive=limits.keep_alive_seconds,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_graceful_shutdown=math.ceil(server.drain_seconds) + _GRACE_SECONDS,
    )  # fmt: skip


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which tells requests when their time to finish is over, and ends at once when asked twice."""

    def __init__(self, config: uvicorn.Config, worker: Worker, drain_seconds: float) -> None:
        super().__init__(config)
        self._worker = worker
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        error = GenerationError("the server is shutting down", status=503, code="shutting_down")
        asyncio.get_running_loop().call_later(self._drain_seconds, self._worker.fail_all, error)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)  # a step of the engine, in its thread, may take long, and nothing is left to be saved
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        listener.close()
        raise ConfigError(f"cannot listen at {host} port {port}: {error}; choose another with --port") from None
    return listener


class EscapingFormatter(logging.Formatter):
    """Writes what is not printable as an escape, so that nothing which was sent can steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and those of a traceback."""
        lines = super().format(record).split("\n")
        return "\n".join(map(escaped, lines))


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether it is more than a request that ended because the server did, which uvicorn takes for a fault."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write the server's log to stderr while the context is open: requests, and what goes wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_is_news)
    loggers = {"transformerlm.serving": logging.INFO, "uvicorn": logging.WARNING, "asyncio": logging.ERROR}
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
