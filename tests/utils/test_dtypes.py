"""Data types by name."""

import pytest
import torch

from transformerlm.utils.dtypes import DTYPES, at_least_float32, dtype_name, parse_dtype
from transformerlm.utils.errors import ConfigError


@pytest.mark.parametrize("name", DTYPES)
def test_names_and_types_are_inverse(name: str) -> None:
    assert parse_dtype(name) == getattr(torch, name)
    assert dtype_name(parse_dtype(name)) == name


def test_unknown_ones_are_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8'; use one of float32, bfloat16, float16"):
        parse_dtype("int8")
    with pytest.raises(ConfigError, match=r"unsupported dtype torch\.int8"):
        dtype_name(torch.int8)


def test_widening_never_narrows() -> None:
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == wide
    x = torch.zeros(1)
    assert at_least_float32(x) is x
