"""State goes into one safetensors file and comes back the same."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from transformerlm.checkpoint.tensor_file import encode, from_bytes, to_bytes
from transformerlm.utils.errors import CheckpointError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")) | st.integers(), inner),
    max_leaves=20,
)


def round_trip(state: Any) -> Any:
    return from_bytes(to_bytes(state), "test")


@given(plain)
def test_plain_values_come_back(state: Any) -> None:
    assert round_trip(state) == state


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.tensor([], dtype=torch.int64),
        torch.arange(6).reshape(2, 3).t(),
        torch.randn(3).to(torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.zeros(1).expand(4),
        torch.randn(10)[2:5],
        torch.get_rng_state(),
        torch.arange(5).to(torch.uint16),
        torch.arange(5).to(torch.float8_e5m2),
    ],
    ids="scalar empty transposed bfloat16 bool nonfinite expanded slice random uint16 float8".split(),
)
def test_a_tensor_comes_back_bit_for_bit(tensor: torch.Tensor) -> None:
    again = round_trip({"a": [tensor, {"b": tensor.clone()}]})
    for found in (again["a"][0], again["a"][1]["b"]):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.view(torch.uint8), tensor.contiguous().view(torch.uint8)) if tensor.ndim else True
        assert torch.equal(found.double().nan_to_num(), tensor.double().nan_to_num())


def test_integer_keys_and_tuples_stay_what_they_are() -> None:
    assert round_trip({"state": {0: {"step": 1}, 1: 2}, "betas": (0.9, 0.95)}) == {
        "state": {0: {"step": 1}, 1: 2},
        "betas": (0.9, 0.95),
    }


@pytest.mark.parametrize("key", ["__tensor__", "__pairs__", "", "a.b", "é"])
def test_no_key_is_special(key: str) -> None:
    state = {key: torch.ones(2), "x": {key: 1}}
    again = round_trip(state)
    assert torch.equal(again[key], torch.ones(2))
    assert again["x"] == {key: 1}


def test_shared_memory_is_stored_once_and_views_are_kept_apart() -> None:
    weight = torch.randn(100, 100)
    data = to_bytes({"a": weight, "tied": weight})
    assert len(data) < 100 * 100 * 4 * 1.1
    again = from_bytes(data, "test")
    assert again["a"] is again["tied"]
    overlapping = {"all": weight, "flat": weight.view(-1), "head": weight[:3], "tail": weight[2:]}
    again = round_trip(overlapping)
    assert all(torch.equal(again[name], tensor) for name, tensor in overlapping.items())


def test_keys_that_would_share_a_path_do_not_mix() -> None:
    again = round_trip({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
    assert (again["a"]["b"].item(), again["a.b"].item()) == (0.0, 1.0)


def test_the_file_is_what_the_library_would_write() -> None:
    tensors = {kind: torch.arange(5).to(getattr(torch, kind)) for kind in ("int64", "float32", "bfloat16", "uint8")}
    tensors |= {"scalar": torch.tensor(3.0), "none": torch.empty(0, 4), "a.b": torch.ones(3, 1)}
    state = {"plain": [1, "\u00e9"], **tensors}
    written = to_bytes(state)
    metadata = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])["__metadata__"]
    assert written == save(tensors, metadata)
    pieces = encode(state)
    assert pieces.num_bytes == len(written) == sum(memoryview(piece).nbytes for piece in pieces)


def test_the_pieces_are_the_tensors_own_memory() -> None:
    weight = torch.zeros(4)
    pieces = iter(encode({"w": weight}))
    next(pieces)
    weight += 1
    assert bytes(next(pieces)) == torch.ones(4).numpy().tobytes()


def test_other_tools_read_the_tensors() -> None:
    assert load(to_bytes({"model": {"w": torch.ones(2)}}))["model.w"].tolist() == [1.0, 1.0]


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"a\.0: a set cannot be saved, only tensors and plain values"):
        to_bytes({"a": [{1, 2}]})
    with pytest.raises(CheckpointError, match=r"a: a tensor of torch\.complex64 cannot be saved"):
        to_bytes({"a": torch.ones(2, dtype=torch.complex64)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        to_bytes({"a": torch.ones(4)})[:-1],
        to_bytes({"a": 1})[:20],
        save({"a": torch.ones(1)}),
        save({"a": torch.ones(1)}, {"transformerlm": "{"}),
        save({"a": torch.ones(1)}, {"transformerlm": '{"__tensor__": "b"}'}),
    ],
    ids=["empty", "text", "short body", "short header", "no metadata", "broken metadata", "missing tensor"],
)
def test_a_damaged_file_is_named(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="place: is not a file that this package wrote, or it is damaged"):
        from_bytes(data, "place")
