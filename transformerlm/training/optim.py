"""AdamW, which parameters it decays, and gradient clipping.

The `torch._foreach_*` functions apply one operation to a list of tensors: the same arithmetic as a loop
over the parameters, in a handful of kernel launches instead of a handful per parameter.
"""

# pyright: reportPrivateImportUsage=false
# (PyTorch documents the foreach functions, but does not list them as exported.)

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
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

    The moments are float32 at least, whatever the parameters are. Every group's `lr` is read at each step.
    Raises `ConfigError` for settings out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ConfigError(f"{name} must not be negative (got {value})")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas must be at least 0 and below 1 (got {betas})")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure`, if given, computes first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        grads = [at_least_float32(p.grad) for p in params if p.grad is not None]
        states = [self._state(p) for p in params]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1

        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)

        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, [math.sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(denominators, group["eps"])

        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        step_sizes = [-lr / (1 - beta1 ** state["step"]) for state in states]
        torch._foreach_addcdiv_(params, first, denominators, step_sizes)

    def _state(self, param: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if not state:
            state["step"] = 0
            for moment in _MOMENTS:
                state[moment] = torch.zeros_like(param, dtype=_moment_dtype(param))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned, bit for bit; `ValueError` if it is of another kind of optimizer."""
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


def _moment_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups for the optimizer: matrices (embeddings too), which decay, and vectors, which do not.

    Decay shrinks what is multiplied with activations; a norm's gains belong near one, not zero.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def gradient_clipping(parameters: Iterable[Tensor], max_l2_norm: float) -> Tensor:
    """Scale all gradients in place so that their joint L2 norm is at most `max_l2_norm`.

    Returns the norm before clipping, a scalar of at least float32 on the gradients' device: nothing waits for it
    here (Pascanu et al. 2013, algorithm 1). Parameters without a gradient are skipped. If the norm is
    not finite neither are the gradients afterwards: look at the norm before stepping.
    """
    if not max_l2_norm > 0:
        raise ConfigError(f"max_l2_norm must be positive (got {max_l2_norm}); use inf to measure only")
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norms = torch._foreach_norm([at_least_float32(grad) for grad in grads], 2)
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    scale = (max_l2_norm / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)
    return total
