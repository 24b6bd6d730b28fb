"""What sections of settings are made of: the base class, what it reports, and types of fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

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
    """A combination of settings that cannot work: where, what to do, and the value found."""

    key: str
    message: str
    got: object


class Section(BaseModel):
    """A table of settings: immutable, typed strictly, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Yield what is impossible in combination; keys are the section's field names."""
        return iter(())
