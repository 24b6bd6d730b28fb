"""Settings of the server: where it listens, whom it trusts, and how much it takes from anybody."""

import ipaddress
from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from transformerlm.hparams import Problem, Section, Strings
from transformerlm.utils.errors import ConfigError

TOKEN_VARIABLE = "TRANSFORMERLM_TOKEN"

Token = Annotated[SecretStr, BeforeValidator(lambda value: value if isinstance(value, SecretStr) else str(value))]
"""A secret: printed as asterisks. Whatever is typed is taken as text, since an error would show it."""


class ServerHparams(Section):
    """Where the server listens, and to whom."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description=f"Address to listen at; one that others reach needs a token (server.token or {TOKEN_VARIABLE}).",
        json_schema_extra={"flag": "--host"},
    )
    port: int = Field(
        default=8000,
        ge=0,
        lt=65536,
        description="Port to listen at (0: any that is free).",
        json_schema_extra={"flag": "--port"},
    )
    token: Token | None = Field(
        default=None,
        description="What clients send as `Authorization: Bearer TOKEN` (OpenAI's clients: as api_key). Others see a "
        f"command line: rather set the environment variable {TOKEN_VARIABLE}, which is read if this is unset.",
    )
    trusted_hosts: Strings = Field(
        default=(),
        description="Without a token: names by which clients may call this machine, besides localhost, 127.0.0.1, "
        "[::1] and `host`; a request that names another in its Host header is refused (* trusts all). With a token "
        "every name is served.",
    )
    special_tokens: bool = Field(
        default=True,
        description="Recognise special tokens that are written in the text of a prompt, such as <|endoftext|>; false "
        "encodes them as plain text, for prompts of people who are not trusted.",
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="After SIGTERM or Ctrl-C, time that running requests have to finish."
    )

    def problems(self) -> Iterator[Problem]:
        if self.token is not None and not is_usable_token(self.token.get_secret_value()):
            yield Problem("token", "must be printable ASCII without spaces, and not empty", "a secret")


class LimitsHparams(Section):
    """What a client may ask for at most, and how long it may take."""

    body_bytes: int = Field(default=1 << 20, gt=0, description="Bytes of a request's body; more is refused (413).")
    header_bytes: int = Field(default=1 << 14, gt=0, description="Bytes of a request's header.")
    prompt_tokens: int | None = Field(
        default=None, gt=0, description="Tokens of a prompt (unset: as many as the context leaves room for)."
    )
    prompts: int = Field(default=64, gt=0, description="Prompts in a request.")
    max_tokens: int = Field(default=4096, gt=0, description="New tokens that a request may ask for, each choice.")
    n: int = Field(default=16, gt=0, description="Choices for each prompt.")
    total_tokens: int = Field(
        default=1 << 16, gt=0, description="Tokens of a request in all: prompts and new ones, of all choices."
    )
    stops: int = Field(default=16, ge=0, description="Stop strings of a request.")
    stop_length: int = Field(default=256, gt=0, description="Characters of a stop string.")
    logprobs: int = Field(default=20, ge=0, description="Most likely tokens that are told beside each token.")
    queue: int = Field(
        default=64,
        ge=0,
        description="Continuations that may wait for a slot; what would be more is refused (429, with Retry-After).",
    )
    retry_after_seconds: int = Field(
        default=1, gt=0, description="What Retry-After says then at least; more if the queue needs longer, up to 60."
    )
    request_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Time for a request, up to its last token; then it ends in an error.",
    )
    connections: int = Field(default=256, gt=0, description="Open connections; one more is closed at once (503).")
    header_seconds: float = Field(default=10.0, gt=0, description="Time for a client to send a request's header.")
    body_seconds: float = Field(default=30.0, gt=0, description="Time for a client to send a request's body.")
    keep_alive_seconds: int = Field(default=15, gt=0, description="Time that an idle connection stays open.")
    send_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Time for a client to take all that waits to be sent to it, before it is dropped.",
    )


def is_usable_token(token: str) -> bool:
    """Whether a header can carry it, and it is worth something."""
    return bool(token) and all("!" <= character <= "~" for character in token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve_token(settings: ServerHparams, variable: str | None) -> str | None:
    """Return the token that clients need, of the settings or of the environment variable's value, or None.

    Raises `ConfigError` if others can reach the server and there is none, or if the variable's is not usable.
    """
    if settings.token is not None:
        return settings.token.get_secret_value()
    if variable is not None:
        if not is_usable_token(variable):
            raise ConfigError(f"{TOKEN_VARIABLE} must be printable ASCII without spaces, and not empty; or unset it")
        return variable
    if not is_loopback(settings.host):
        raise ConfigError(
            f"server.host: {settings.host!r} can be reached from other machines, so that clients need a token; set the "
            f"environment variable {TOKEN_VARIABLE} to a long random text, or leave the host at 127.0.0.1"
        )
    return None
