"""What a client may ask of /v1/completions: the fields, their ranges, and one readable sentence for what is wrong.

The fields are OpenAI's and some more (`top_k`, `min_p`, `repetition_penalty`, `sampling_probs`, and more stop strings).
A field that would change the answer and that this server does not know is refused by name; one that changes nothing, by
its nature or its value, is accepted.
"""

import codecs
import difflib
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from transformerlm.hparams import SamplingHparams
from transformerlm.serving.errors import ApiError
from transformerlm.serving.settings import LimitsHparams

TextOrIds: TypeAlias = str | list[int]
INT64 = 2**63
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PROMPT_FORMS = "must be a string, a list of strings, a list of token ids, or a list of lists of token ids"


def _prompts(value: Any) -> list[TextOrIds]:
    """Return the prompts, each as text or as ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_PROMPT_FORMS)
    if all(isinstance(item, str) for item in value):
        return value
    if _are_ids(value):
        return [value]
    if all(isinstance(item, list) and item and _are_ids(item) for item in value):
        return value
    raise ValueError(_PROMPT_FORMS)


def _are_ids(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)  # a bool is an int, too


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be a string or a list of strings, none of them empty")
    return tuple(stops)


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None  # changes nothing: chunks are not padded


class CompletionRequest(BaseModel):
    """A request that is well-formed; `check_limits` and `check_model` say whether it may be asked here."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    prompt: Annotated[list[TextOrIds], PlainValidator(_prompts)]
    model: str | None = None
    max_tokens: int | None = Field(default=16, ge=0)
    temperature: float | None = Field(default=1.0, ge=0, le=100)
    top_p: float | None = Field(default=1.0, ge=0, le=1)
    n: int | None = Field(default=1, ge=1)
    stop: Annotated[tuple[str, ...], PlainValidator(_stop_strings)] = ()
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # beyond OpenAI's
    top_k: int | None = Field(default=None, gt=0, lt=INT64)
    min_p: float | None = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(default=1.0, ge=0.01, le=100)
    sampling_probs: bool | None = False

    @property
    def num_choices(self) -> int:
        """How many choices the answer has for each prompt."""
        return self.n or 1

    @property
    def new_tokens(self) -> int:
        """How many new tokens each choice may have."""
        return 16 if self.max_tokens is None else self.max_tokens

    def sampling(self, seed: int) -> SamplingHparams:
        """Return the engine's settings for a choice that draws with `seed`; what is null is as if it were left out."""
        return SamplingHparams(
            max_new_tokens=max(1, self.new_tokens),  # none at all: one is drawn all the same, and not told
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=seed % INT64,
            stop=self.stop,
        )


def _one_prompt(value: Any) -> TextOrIds:
    if isinstance(value, str) or (isinstance(value, list) and value and _are_ids(value)):
        return value
    raise ValueError("must be a string or a list of token ids")


class TokenizeRequest(BaseModel):
    """A prompt whose tokens are to be counted."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    prompt: Annotated[TextOrIds, PlainValidator(_one_prompt)]


RequestType = TypeVar("RequestType", CompletionRequest, TokenizeRequest)


def parse_request(body: bytes, kind: type[RequestType] = CompletionRequest) -> RequestType:
    """Return the request of a JSON body; raise `ApiError` (400) that names the field that is wrong."""
    if body.startswith(_BYTE_ORDER_MARKS):
        raise ApiError(400, "the body begins with a byte-order mark; send plain UTF-8 without it", code="invalid_json")
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _translated(error) from None
    if isinstance(request, CompletionRequest):
        _check_other_fields(request)
        _check_combinations(request)
    return request


IGNORED_FIELDS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})
"""Fields that change nothing about the answer, whatever their value."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "best_of": (1,),
    "detokenize": (True,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "priority": (0,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}
"""Fields of other servers that this one does not have, and the values of them that change nothing."""


def _check_other_fields(request: CompletionRequest) -> None:
    """Raise `ApiError` (400) that names a field which would change the answer and is not supported."""
    for name, value in (request.model_extra or {}).items():
        accepted = [*NEUTRAL_VALUES.get(name, ()), *([request.num_choices] if name == "best_of" else [])]
        if value is None or name in IGNORED_FIELDS or value in accepted:
            continue
        if name in NEUTRAL_VALUES:
            hint = "; see repetition_penalty" if name.endswith("_penalty") else ""
            raise ApiError(400, f"{name}: is not supported{hint}", param=name, code="unsupported_value")
        nearest = difflib.get_close_matches(name[:64], list(CompletionRequest.model_fields), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        shown = printable(name)
        raise ApiError(400, f"{shown}: unknown field{hint}", param=shown, code="unknown_field")


def _translated(error: ValidationError) -> ApiError:
    """Make one sentence of the first thing that is wrong, without what was given: that may be long, or a secret."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    kind, param = problem["type"], str(problem["loc"][0]) if problem["loc"] else None
    if kind == "json_invalid":
        reason = problem["msg"].partition(": ")[2]
        if "surrogate" in reason or "end of hex escape" in reason:
            reason = f"half of a surrogate pair is not a character; send both halves ({reason})"
        return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    if param is None:
        return ApiError(400, "the body must be a JSON object", code="invalid_json")
    shown = printable(place)
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(problem["loc"][-1])[:64], list(StreamOptions.model_fields), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return ApiError(400, f"{shown}: unknown field{hint}", param=printable(param), code="unknown_field")
    if kind == "missing":
        return ApiError(400, f"{shown}: is missing", param=param, code="missing_field")
    words = {"int_parsing_size": "is too large", "none_required": "must be null", "literal_error": "is not supported"}
    text = words.get(kind) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ApiError(400, f"{shown}: {text}", param=param, code="invalid_value")


def printable(text: str, *, longest: int = 64) -> str:
    """Return `text`, shortened and with what is not printable escaped."""
    short = text if len(text) <= longest else text[:longest] + "…"
    return escaped(short)


def escaped(text: str) -> str:
    """Return `text` with what is not printable as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def _check_combinations(request: CompletionRequest) -> None:
    if request.new_tokens == 0 and not request.echo:
        raise ApiError(400, "max_tokens: may be 0 only with echo", param="max_tokens", code="invalid_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: needs stream", param="stream_options", code="invalid_value")


def check_limits(request: CompletionRequest, limits: LimitsHparams) -> None:
    """Raise `ApiError` (400) that names the field of which too much is asked."""
    asked = [
        ("prompt", len(request.prompt), limits.prompts, "prompts"),
        ("max_tokens", request.new_tokens, limits.max_tokens, "tokens"),
        ("n", request.num_choices, limits.n, "choices"),
        ("logprobs", request.logprobs or 0, limits.logprobs, "tokens"),
        ("stop", len(request.stop), limits.stops, "strings"),
        ("stop", max(map(len, request.stop), default=0), limits.stop_length, "characters"),
    ]
    for name, value, most, unit in asked:
        if value > most:
            raise ApiError(400, f"{name}: at most {most:,} {unit} are allowed", param=name, code="limit_exceeded")


def check_model(request: CompletionRequest, name: str) -> None:
    """Raise `ApiError` (404) if another model than the one served is asked."""
    if request.model is not None and request.model != name:
        message = f"model: {printable(request.model)!r} is not served here; it is {name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
