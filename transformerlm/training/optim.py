"""AdamW and gradient clipping.

Norms, scales, step counts and the decision to skip a step are tensors on the device, which avoids host–device syncs.
The learning rate is a tensor too: the compiled update would be recompiled for each new Python number.
"""

# pyright: reportPrivateImportUsage=false
# (PyTorch documents the foreach functions, but does not list them as exported.)

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    With gradient g, step t and the group's settings, for each parameter θ:

        m ← β₁ m + (1 − β₁) g                     v ← β₂ v + (1 − β₂) g²
        θ ← θ − lr · weight_decay · θ
        θ ← θ − lr · m / (1 − β₁ᵗ) / (sqrt(v / (1 − β₂ᵗ)) + eps)

    The moments are at least float32. Every group's `lr` is read at each step. `update` does this arithmetic for one
    parameter. Raises `ConfigError` for settings out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        update: Callable[..., None] | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ConfigError(f"{name} must not be negative (got {value})")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas must be at least 0 and below 1 (got {betas})")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.update = update or adamw_update

    @torch.no_grad()
    def step(self, *, gradient_scale: Tensor | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Gradients are multiplied by `gradient_scale`, a scalar on their device. If it is zero, the step changes nothing,
        not even the step counts, for any gradients.
        """
        for group, params in with_gradients(self.param_groups):
            lr = torch.full((), group["lr"], device=params[0].device)
            decay = torch.full((), group["lr"] * group["weight_decay"], device=params[0].device)
            settings = {"lr": lr, "decay": decay, "betas": group["betas"], "eps": group["eps"]}
            for param in params:
                assert param.grad is not None
                state = self._state(param)
                m, v = state["exp_avg"], state["exp_avg_sq"]
                self.update(param, param.grad, m, v, state["step"], gradient_scale=gradient_scale, **settings)

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), device=param.device)
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(param, dtype=_moment_dtype(param))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`, bit for bit; raise `ValueError` if it is from another kind of optimizer."""
        if any(moment not in saved for saved in state_dict["state"].values() for moment in _MOMENTS):
            raise ValueError(f"the state is not AdamW's: it lacks {' or '.join(_MOMENTS)}")
        super().load_state_dict(state_dict)
        # The base class rounds the moments to the parameter's type, and may share their memory.
        names = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for name, param in zip(names, params, strict=True):
            for moment in _MOMENTS if name in state_dict["state"] else ():
                saved = state_dict["state"][name][moment]
                self.state[param][moment] = saved.to(param.device, _moment_dtype(param), copy=True)
            if name in state_dict["state"]:
                steps = torch.as_tensor(state_dict["state"][name]["step"], dtype=torch.float32)
                self.state[param]["step"] = steps.to(param.device, copy=True)


def adamw_update(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    *,
    lr: Tensor,
    decay: Tensor,
    betas: tuple[float, float],
    eps: float,
    gradient_scale: Tensor | None = None,
) -> None:
    """Do the arithmetic of `AdamW` for one parameter, in place; `decay` is lr · weight_decay.

    For a skipped step (see `scaled_gradient`) taken = 0, so that everything is multiplied by 1 and 0 is added.
    """
    (beta1, beta2), (g, taken) = betas, scaled_gradient(grad, gradient_scale)
    step.add_(taken)
    t = step.clamp(min=1)  # 0 if the very first step is skipped
    m.lerp_(g, (1 - beta1) * taken)  # m ← β₁ m + (1 − β₁) g
    v.lerp_(g.square(), (1 - beta2) * taken)  # v ← β₂ v + (1 − β₂) g²
    param.mul_(1 - decay * taken)  # θ ← θ − lr · weight_decay · θ
    denominator = (v / _one_minus_power(beta2, t)).sqrt_().add_(eps)
    param.sub_(m * (lr * taken / _one_minus_power(beta1, t)) / denominator)


def scaled_gradient(grad: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `grad · scale` in at least float32, and 1.0 as a tensor; for a scale of zero, zeros and 0.0.

    A scale of zero also turns a gradient that is not finite into zeros.
    """
    grad, taken = at_least_float32(grad), torch.ones((), device=grad.device)
    if scale is None:
        return grad, taken
    applied = scale > 0
    return torch.where(applied, grad * scale, 0), applied.to(taken)  # 0 · inf would be nan


def with_gradients(param_groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield each group of an optimizer with its parameters that have a gradient; groups without any are left out."""
    for group in param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        if params:
            yield group, params


def _one_minus_power(beta: float, steps: Tensor) -> Tensor:
    """Return 1 − βᵗ in full float32 precision: plain subtraction would lose four digits at β = 0.999."""
    return -torch.expm1(steps * (math.log(beta) if beta else -math.inf))


def _moment_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


@torch.no_grad()
def gradient_clipping(parameters: Iterable[Tensor], max_l2_norm: float) -> Tensor:
    """Scale all gradients in place so that their joint L2 norm is at most `max_l2_norm`.

    Returns the norm before clipping, a scalar of at least float32 on the gradients' device, without a sync
    (Pascanu et al. 2013, algorithm 1). Parameters without a gradient are skipped. If the norm is not finite,
    the gradients are not finite afterwards either: check the norm before stepping.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    total = gradient_norm(grads)
    scale = clipping_scale(total, max_l2_norm)
    if grads:
        torch._foreach_mul_(grads, scale)
    return total


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """Return the joint L2 norm of `grads`, a scalar of at least float32 on their device."""
    if not grads:
        return torch.tensor(0.0)
    norms = torch._foreach_norm([at_least_float32(grad) for grad in grads], 2)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))


def clipping_scale(norm: Tensor, max_l2_norm: float) -> Tensor:
    """Return the factor that scales gradients of joint L2 norm `norm` down to at most `max_l2_norm`."""
    if not max_l2_norm > 0:
        raise ConfigError(f"max_l2_norm must be positive (got {max_l2_norm}); use inf to measure only")
    return (max_l2_norm / (norm + 1e-6)).clamp(max=1.0)
