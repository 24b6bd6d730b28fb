"""Records as strict JSON: every JSON-like value survives, and nothing else gets through."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logger.records import json_line

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _reject_constant(name: str) -> object:
    raise AssertionError(f"bare {name} in JSON")


def _spell_nonfinite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, dict):
        return {key: _spell_nonfinite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_spell_nonfinite(entry) for entry in value]
    return value


@given(st.dictionaries(st.text(), _json_values, max_size=4))
def test_a_line_reads_back_as_the_record(record: dict[str, object]) -> None:
    line = json_line(record)

    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line, parse_constant=_reject_constant) == _spell_nonfinite(record)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_the_words_for_non_finite_numbers_read_back_with_float(text: str) -> None:
    number = float(text)

    assert json.loads(json_line({"metrics.loss": number})) == {"metrics.loss": text}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.float16("nan"), "NaN"),
        (np.int64(7), 7),
        (np.uint16(65535), 65535),
        (np.bool_(True), True),
        (np.array(3), 3),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor([7]), 7),
        (torch.tensor(False), False),
        (torch.tensor(math.inf), "Infinity"),
        (torch.nn.Parameter(torch.tensor(2.0)), 2.0),
        (Fraction(1, 2), 0.5),
        ((1, np.float32(2)), [1, 2.0]),
    ],
    ids=repr,
)
def test_scalars_of_any_library_become_plain(value: object, expected: object) -> None:
    decoded = json.loads(json_line({"value": value}))["value"]

    assert decoded == expected
    assert type(decoded) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        NotImplemented,
        b"bytes",
        {1, 2},
        1j,
        torch.zeros(2),
        np.zeros(2),
        torch.tensor(1j),
        [NotImplemented],
        {"a": b""},
        {1: 2},
    ],
    ids=repr,
)
def test_anything_else_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        json_line({"value": value})
