"""Muon against PyTorch's, and its orthogonalisation against a singular value decomposition in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from transformerlm.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalize, update_scale
from transformerlm.utils.errors import ConfigError

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (24, 24), (12, 40), (40, 12)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_svd(matrix: Tensor) -> Tensor:
    """The iteration as what it does to singular values, in float64."""
    a, b, c = COEFFICIENTS
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_acts_on_singular_values_alone(shape: tuple[int, int]) -> None:
    matrices = torch.stack([normal(*shape, seed=seed) * 10.0 ** (4 * seed - 4) for seed in range(3)])
    found = orthogonalize(matrices)
    assert found.shape == matrices.shape
    for matrix, result in zip(matrices, found, strict=True):
        torch.testing.assert_close(result.double(), by_svd(matrix), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (200, 64)])
def test_the_result_is_near_orthogonal(shape: tuple[int, int], dtype: torch.dtype) -> None:
    # Ill-conditioned: singular values from 1 to 0.01, as momenta have.
    u, _, vt = torch.linalg.svd(normal(*shape).double(), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, 64, dtype=torch.float64)) @ vt
    result = orthogonalize(matrix.float()[None], dtype)
    assert result.dtype == dtype
    inside = u.T @ result[0].double() @ vt.T  # diagonal if U and V are kept
    values = inside.diagonal()
    assert 0.65 < values.min() < values.max() < 1.23
    assert (inside - values.diag()).abs().max() < (1e-3 if dtype == torch.float32 else 0.05)
    assert torch.linalg.svdvals(matrix).min() < 0.02  # it was far from orthogonal


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


def weights(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(normal(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    for i, param in enumerate(params):
        param.grad = (normal(*param.shape, seed=100 * step + i) * 10.0 ** (step % 5 - 3)).to(param.dtype)


SETTINGS = [{}, {"lr": 0.1, "weight_decay": 0.3}, {"lr": 0.02, "momentum": 0.0}, {"lr": 0.02, "momentum": 0.8}]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon to compare with")
@pytest.mark.parametrize("in_float32", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_torch_over_many_steps(settings: dict, in_float32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_float32:  # PyTorch's always rounds to bfloat16: without that the two agree to float32's last digits
        monkeypatch.setattr(Tensor, "bfloat16", lambda tensor: tensor)
    # Lying and standing matrices of one shape share a batch, also when they are not neighbours.
    shapes = [(8, 20), (20, 8), (6, 6), (8, 20), (1, 9), (9, 1), (6, 6)]
    ours, theirs = weights(shapes), weights(shapes)
    our_optimizer = Muon(ours, **settings, dtype=torch.float32 if in_float32 else torch.bfloat16)
    torch_optimizer = torch.optim.Muon(theirs, **{"weight_decay": 0.0, **settings}, adjust_lr_fn="match_rms_adamw")
    for step in range(12):
        for params, optimizer in ((ours, our_optimizer), (theirs, torch_optimizer)):
            set_gradients(params, step)
            if step % 4 == 1:
                params[1].grad = None
            for group in optimizer.param_groups:
                group["lr"] = settings.get("lr", 1e-3) * (1 + step % 3)
            optimizer.step()
    for start, a, b in zip(weights(shapes), ours, theirs, strict=True):
        difference = (a - b).norm() / (b - start).norm()
        assert difference < (2e-4 if in_float32 else 0.03)


def test_every_element_moves_by_what_adamw_moves_it() -> None:
    for shape in [(64, 64), (64, 200), (200, 64)]:
        (param,) = weights([shape])
        before = param.detach().clone()
        set_gradients([param], 0)
        Muon([param], lr=0.1).step()
        rms = (param - before).square().mean().sqrt().item()
        assert rms == pytest.approx(0.1 * 0.2, rel=0.2)
        assert update_scale(*shape) == update_scale(*reversed(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_bit_for_bit(dtype: torch.dtype) -> None:
    params = weights([(8, 20), (20, 8), (6, 6)], dtype)
    optimizer = Muon(params, lr=0.05, weight_decay=0.1)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    copies, state = copy.deepcopy(params), optimizer.state_dict()
    untouched = copy.deepcopy(state)
    resumed = Muon(copies, lr=1.0, momentum=0.0)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        for ps, opt in ((copies, resumed), (params, optimizer)):
            set_gradients(ps, step)
            opt.step()
            if opt is resumed and step == 3:
                torch.testing.assert_close(state, untouched, rtol=0, atol=0)  # loading copied
    assert all(map(torch.equal, params, copies))
    for a, b in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert a["momentum"].dtype == torch.float32
        assert torch.equal(a["momentum"], b["momentum"])


@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_scale_of_zero_changes_nothing(first: bool) -> None:
    params = weights([(8, 20), (6, 6)])
    optimizer = Muon(params, lr=0.05, weight_decay=0.1)
    if not first:
        set_gradients(params, 0)
        optimizer.step()
    before = copy.deepcopy((params, [state["momentum"] for state in optimizer.state.values()]))
    for param in params:
        param.grad = torch.full_like(param, float("inf"))
    optimizer.step(gradient_scale=torch.tensor(0.0))
    assert all(map(torch.equal, params, before[0]))
    momenta = [state["momentum"] for state in optimizer.state.values()]
    assert all(map(torch.equal, momenta, before[1] or map(torch.zeros_like, params)))


def test_the_gradient_scale_multiplies_the_gradients() -> None:
    scaled, expected = weights([(8, 20), (6, 6)]), weights([(8, 20), (6, 6)])
    ours, theirs = Muon(scaled, lr=0.05), Muon(expected, lr=0.05)
    for step in range(3):
        for params in (scaled, expected):
            set_gradients(params, step)
        for param in expected:
            param.grad.mul_(0.25**step)
        ours.step(gradient_scale=torch.tensor(0.25**step))
        theirs.step()
    assert all(map(torch.equal, scaled, expected))


def test_large_matrices_are_not_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = weights([(8, 20)] * 5), weights([(8, 20)] * 5)
    for params, limit in ((together, 2**20), (apart, 2 * 8 * 20)):
        monkeypatch.setattr("transformerlm.training.muon._BATCH_ELEMENTS", limit)
        sizes: list[int] = []
        monkeypatch.setattr(
            "transformerlm.training.muon.orthogonalize",
            lambda x, dtype, sizes=sizes: (sizes.append(len(x)), orthogonalize(x, dtype))[1],
        )
        set_gradients(params, 0)
        Muon(params).step()
        assert sizes == ([5] if params is together else [2, 2, 1])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", [{"lr": -1.0}, {"weight_decay": -1.0}, {"momentum": 1.0}])
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Muon(weights([(2, 2)]), **setting)


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ConfigError, match=r"matrices only \(got shape \(3,\)\)"):
        Muon([nn.Parameter(torch.ones(3))])


def test_the_state_of_another_optimizer_is_refused() -> None:
    params = weights([(2, 2)])
    other = torch.optim.AdamW(params)
    set_gradients(params, 0)
    other.step()
    with pytest.raises(ValueError, match="not Muon's"):
        Muon(params).load_state_dict(other.state_dict())
