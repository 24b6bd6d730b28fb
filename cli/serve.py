"""`transformerlm-serve`: serve a checkpoint over an OpenAI-compatible API, with a web page to try it."""

import os
import sys
from typing import TYPE_CHECKING

from cli.progress import say, say_compiling
from cli.utils import EXIT_OK, Invocation, run_command
from config.serve import ServeConfig
from transformerlm.serving.settings import TOKEN_VARIABLE, resolve_token
from transformerlm.utils.errors import MissingDependencyError

if TYPE_CHECKING:
    from transformerlm.inference.predictor import Predictor

EPILOG = "example: transformerlm-serve --checkpoint runs/stories --port 8000"
_LIBRARIES = ("fastapi", "prometheus_client", "starlette", "uvicorn")


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(ServeConfig, _run, prog="transformerlm-serve", epilog=EPILOG)


def _run(invocation: Invocation[ServeConfig]) -> int:
    config = invocation.config
    token = resolve_token(config.server, os.environ.get(TOKEN_VARIABLE))
    try:
        from transformerlm.serving.app import App
        from transformerlm.serving.server import Server, log_to_stderr
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        raise MissingDependencyError(
            f"the server needs {error.name}: uv sync --extra serve, or pip install 'transformerlm[serve]'"
        ) from None
    predictor, name = _load(config)
    if config.model.compile:
        say_compiling("the decoding steps")
    app = App(
        predictor, name=name, slots=config.model.slots, server=config.server, limits=config.limits, token=token
    )  # fmt: skip
    server = Server(app, config.server, config.limits)
    say(_how_to_try(server.address, name, token))  # the socket is open; requests are answered once the server runs
    with log_to_stderr():
        server.run()
    return EXIT_OK


def _load(config: ServeConfig) -> tuple["Predictor", str]:
    """Return the model with its tokenizer, and its name in the API."""
    from transformerlm.inference.predictor import Predictor
    from transformerlm.utils.devices import set_threads

    settings = config.model
    set_threads(settings.threads)
    predictor = Predictor.from_checkpoint(
        settings.checkpoint,
        device=settings.device,
        dtype=settings.dtype,
        compiled=settings.compile,
        int8=settings.int8,
    )
    return predictor, settings.name or _run_name(config)


def _run_name(config: ServeConfig) -> str:
    """Return the name of the run's folder, `runs/stories` or `runs/stories/checkpoints/step_00001000`."""
    folder = config.model.checkpoint.resolve()
    if folder.name.startswith("step_"):
        folder = folder.parent
    return (folder.parent if folder.name == "checkpoints" else folder).name


def _how_to_try(address: str, name: str, token: str | None) -> str:
    header = "" if token is None else f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"'
    body = '{"prompt": "Once upon a time", "max_tokens": 50}'
    return f"serving {name!r} at {address}; try: curl {address}/v1/completions{header} -d '{body}'"


if __name__ == "__main__":
    sys.exit(main())
