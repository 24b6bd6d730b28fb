"""A model takes memory only when its weights are there, names and shapes."""

from typing import Any

import pytest
import torch

from transformerlm.checkpoint.shapes import model_without_memory
from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.utils.errors import CheckpointError

HPARAMS = ModelHparams(vocab_size=40, context_length=16, d_model=32, num_layers=2, num_heads=2, d_ff=64)


@pytest.fixture
def model() -> TransformerLM:
    return build_model(HPARAMS, seed=0)


def test_a_model_that_fits_is_returned_without_memory(model: TransformerLM) -> None:
    empty = model_without_memory(HPARAMS, model.state_dict())
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 1 << 20}, r"layers.0.attn.k_proj.weight is \(32, 32\) in the weights and \(1048576, 1048576\) by"),
        ({"num_layers": 10_000}, "layers.10.attn.k_proj.weight is not there in the weights and"),
        ({"num_layers": 3}, "layers.2.attn.k_proj.weight is not there in the weights and"),
        ({"tie_embeddings": True}, r"lm_head.weight is \(40, 32\) in the weights and not there by config.toml"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str, model: TransformerLM) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_without_memory(HPARAMS.model_copy(update={"num_kv_heads": 2} | changes), model.state_dict())


@pytest.mark.parametrize("state", [None, [], 3, {"token_embeddings.weight": 3, "a": {}}])
def test_what_are_no_weights_is_said(state: Any) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint does not fit the model"):
        model_without_memory(HPARAMS, state)


def test_a_tensor_too_many_is_named(model: TransformerLM) -> None:
    with pytest.raises(CheckpointError, match=r"more is \(3,\) in the weights and not there by config.toml"):
        model_without_memory(HPARAMS, {**model.state_dict(), "more": torch.zeros(3)})
