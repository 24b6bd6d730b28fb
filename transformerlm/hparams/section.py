"""The base class of settings sections, the problems it reports, and types of fields."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from transformerlm.utils.errors import ConfigError

PathSetting = Annotated[Path, Strict(False), BeforeValidator(lambda value: _not_empty(value))]
"""A path: TOML has only strings."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]

Strings = Annotated[tuple[str, ...], Strict(False)]
"""A list of strings: TOML arrays arrive as `list`."""

Integers = Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Strict(False)]
"""A list of positive integers."""

PathsSetting = Annotated[
    tuple[PathSetting, ...],
    Strict(False),
    BeforeValidator(lambda value: [value] if isinstance(value, (str, Path)) else value),
]
"""One path or a list of paths."""

PositiveNumbers = Annotated[tuple[Annotated[float, Strict(), Field(gt=0)], ...], Strict(False)]
"""A list of positive numbers."""

NamesSetting = Annotated[
    tuple[str, ...], Strict(False), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
"""One name or a list of names."""

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["auto", "float32", "bfloat16"]


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would be the current folder
        raise ValueError("must not be empty")
    return value


class Problem(NamedTuple):
    """An invalid combination of settings: the key, what to do, and the value found."""

    key: str
    message: str
    got: object
    hint: str = ""
    """A suggestion that would work, such as `; try 12`."""


class Section(BaseModel):
    """A table of settings: immutable and strictly typed; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Yield invalid combinations of settings; keys are the section's field names."""
        return iter(())

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Return the section with these values; values of None are left out.

        Raises `ConfigError` with one line for each value that is unknown, out of range, or does not fit the others.
        """
        try:
            section = cls(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise ConfigError("\n".join(f"{key} {text}" for key, text in describe_errors(error, cls))) from None
        if problems := list(section.problems()):
            raise ConfigError("\n".join(f"{problem.key} {describe_problem(problem)}" for problem in problems))
        return section


def describe_errors(
    error: ValidationError,
    section: "type[Section]",
    *,
    suggest: Callable[[str], str] | None = None,
    allow_missing: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield each invalid key of a section with its problem.

    `suggest` returns a replacement for an unknown key; with `allow_missing`, keys without a value are skipped.
    """
    items = error.errors(include_url=False)
    parents = {item["loc"][:-1] for item in items}
    for item in items:
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "default_factory_not_called":  # follows from another key's error
            continue
        if item["type"] == "too_short" and item["loc"] in parents:  # a wrong item of a list is not counted
            continue
        if item["type"] == "extra_forbidden":
            advice = suggest(key) if suggest else suggestion(key, section.model_fields)
            yield key, f"unknown key (got {item['input']!r}){advice}"
        elif item["type"] == "missing":
            if allow_missing:
                continue
            description = section.model_fields[key].description
            yield key, f"is missing: {description}"
        else:
            message = (
                item["msg"]
                .removeprefix("Input ")
                .removeprefix("Value error, ")
                .replace("tuple", "list")
                .replace("Tuple", "list")
            )
            yield key, _with_value(message, item["input"])


def describe_problem(problem: Problem, *, is_given: bool = True) -> str:
    """Return the problem, what to do, and the value found."""
    if is_given or problem.got is None:
        return _with_value(problem.message, problem.got) + problem.hint
    return f"{problem.message} (it is {problem.got!r} unless it is set){problem.hint}"


def suggestion(name: str, known: Mapping[str, Any]) -> str:
    """Return the known name that was probably meant, or all of them."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(known)}"


def _with_value(message: str, got: object) -> str:
    return f"{message} (got {'nothing' if got is None else repr(got)})"
