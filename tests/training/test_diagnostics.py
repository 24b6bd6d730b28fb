"""Norms are measured from outside and leave nothing behind."""

import math
from collections.abc import Callable

import pytest
import torch

from transformerlm.models import TransformerLM
from transformerlm.training.diagnostics import activation_norms, weight_norms


def num_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_blocks_output_is_measured(make_model: Callable[..., TransformerLM]) -> None:
    model = make_model()
    outputs = []
    ids = torch.arange(16).reshape(2, 8)
    with activation_norms(model) as norms:
        assert num_hooks(model) == 2
        model(ids)
        for layer in model.layers:
            layer.register_forward_hook(lambda _m, _i, output: outputs.append(output.detach()))
        model(ids)
    assert list(norms) == ["layers.0", "layers.1"]
    for norm, output in zip(norms.values(), outputs, strict=True):
        assert norm.item() == pytest.approx(math.sqrt((output.double() ** 2).mean()), rel=1e-5)
        assert not norm.requires_grad


def test_no_hook_stays_even_after_an_error(make_model: Callable[..., TransformerLM]) -> None:
    model = make_model()
    with activation_norms(model):
        pass
    assert num_hooks(model) == 0
    with pytest.raises(RuntimeError, match="stop"), activation_norms(model):
        raise RuntimeError("stop")
    assert num_hooks(model) == 0


def test_weights_are_measured_by_name(make_model: Callable[..., TransformerLM]) -> None:
    model = make_model()
    norms = weight_norms(model)
    assert norms.keys() == dict(model.named_parameters()).keys()
    assert norms["lm_head.weight"].item() == pytest.approx(model.state_dict()["lm_head.weight"].norm().item())
    assert not any(norm.requires_grad for norm in norms.values())
