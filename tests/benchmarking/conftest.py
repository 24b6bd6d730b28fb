"""Reads what a benchmark wrote to stdout."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


@pytest.fixture
def read_summary(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """Return the summary on stdout, which must be one line of JSON with finite numbers."""

    def read() -> dict[str, Any]:
        (line,) = capsys.readouterr().out.splitlines()
        summary = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert all(math.isfinite(number) for number in _numbers(summary))
        return summary

    return read
