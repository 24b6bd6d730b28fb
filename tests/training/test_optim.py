"""AdamW and gradient clipping against PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from transformerlm.training.optim import AdamW, gradient_clipping
from transformerlm.training.param_groups import parameter_groups
from transformerlm.utils.errors import ConfigError


def small_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def set_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = scale * torch.randn(parameter.shape, generator=draw)
        parameter.grad = gradient.to(parameter.dtype)


SETTINGS = [
    {},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.0},
    {"lr": 0.02, "betas": (0.0, 0.0)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_torch_over_many_steps(settings: dict) -> None:
    ours, theirs = small_net(), small_net()
    our_optimizer = AdamW(ours.parameters(), **settings)
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), **{"weight_decay": 0.01, **settings})
    for step in range(20):
        for model, optimizer in ((ours, our_optimizer), (theirs, torch_optimizer)):
            set_gradients(model, step, scale=10.0 ** (step % 5 - 3))
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_equals_torch_with_groups_a_schedule_and_missing_gradients() -> None:
    ours, theirs = small_net(), small_net()
    our_optimizer = AdamW(parameter_groups(ours, 0.5))
    torch_optimizer = torch.optim.AdamW(parameter_groups(theirs, 0.5))
    for step in range(12):
        for model, optimizer in ((ours, our_optimizer), (theirs, torch_optimizer)):
            set_gradients(model, step)
            if step % 3 == 1:  # then this parameter's step count falls behind the others'
                model[0].weight.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_bit_for_bit(dtype: torch.dtype) -> None:
    model = small_net(dtype)
    optimizer = AdamW(parameter_groups(model, 0.1), lr=0.05)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    saved_model, saved_state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    resumed = AdamW(parameter_groups(saved_model, 0.9), lr=1.0)
    resumed.load_state_dict(saved_state)
    before = copy.deepcopy(saved_state)
    for step in range(3, 6):
        for net, opt in ((model, optimizer), (saved_model, resumed)):
            set_gradients(net, step)
            opt.step()
    for a, b in zip(model.parameters(), saved_model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert a["step"] == b["step"]
        assert torch.equal(a["exp_avg"], b["exp_avg"])
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    for name, state in before["state"].items():
        assert torch.equal(state["exp_avg"], saved_state["state"][name]["exp_avg"]), "loading aliased the state"


def test_a_fresh_optimizer_loads_a_fresh_state() -> None:
    optimizer = AdamW(small_net().parameters())
    optimizer.load_state_dict(AdamW(small_net().parameters()).state_dict())
    assert not optimizer.state


def test_moments_of_low_precision_weights_are_float32() -> None:
    model = small_net(torch.bfloat16)
    optimizer = AdamW(model.parameters())
    set_gradients(model, 0)
    optimizer.step()
    assert {s[m].dtype for s in optimizer.state.values() for m in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}])
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        AdamW(small_net().parameters(), **setting)


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 1e4, float("inf")])
def test_clipping_equals_torch(max_norm: float) -> None:
    ours, theirs = small_net(), small_net()
    for model in (ours, theirs):
        set_gradients(model, 0)
        model[0].bias.grad = None
    norm = gradient_clipping(iter(ours.parameters()), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
        else:
            assert b.grad is None


def test_the_norm_of_low_precision_gradients_is_taken_in_float32() -> None:
    parameter = torch.zeros(4096, dtype=torch.bfloat16, requires_grad=True)
    parameter.grad = torch.ones_like(parameter)
    norm = gradient_clipping([parameter], 1.0)
    assert norm.dtype == torch.float32
    assert norm.item() == 64.0
    assert parameter.grad.dtype == torch.bfloat16
    assert parameter.grad[0].item() == 1 / 64


def test_no_gradients_have_norm_zero() -> None:
    assert gradient_clipping(small_net().parameters(), 1.0).item() == 0.0


def test_a_norm_that_is_not_finite_is_reported() -> None:
    model = small_net()
    set_gradients(model, 0)
    model[0].weight.grad[0, 0] = float("inf")
    assert not gradient_clipping(model.parameters(), 1.0).isfinite()


def test_the_clipping_norm_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_l2_norm must be positive"):
        gradient_clipping(small_net().parameters(), 0.0)
