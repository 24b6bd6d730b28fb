"""Muon: orthogonalised momentum, for the hidden matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient matrix is dominated by a few directions; a step along it hardly changes the others. Muon takes an equal
step in all directions: it replaces the momentum by the nearest (semi-)orthogonal matrix.

    gradient ──momentum──▶ M = U S Vᵀ ──five matrix polynomials──▶ O ≈ U Vᵀ ──▶ W ← W − lr · scale · O

It is only for matrices that map activations to activations. Embeddings, the output layer and gains use AdamW;
`param_groups.build_optimizer` assigns the parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from transformerlm.distributed.dtensor import local_piece, sharded_like, whole
from transformerlm.training.optim import scaled_gradient, with_gradients
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
_EPS = 1e-7
_BATCH_ELEMENTS = 2**25  # matrices stacked at a time: enough to fill a GPU, 128 MB in float32


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an approximation of `U Vᵀ` for each matrix `U S Vᵀ` of a batch (N, R, C), in `dtype`.

    The Newton–Schulz iteration of Jordan et al. 2024: `X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X` applies the odd polynomial
    `a s + b s³ + c s⁵` to every singular value s and does not change U and V. Its coefficients trade convergence to
    exactly 1 for a steep start: after five rounds, singular values from 0.002 to 1 are between 0.68 and 1.21
    (1 is the largest after division by the Frobenius norm). bfloat16 is precise enough; the authors use it where it
    is fast. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices  # X Xᵀ is then the smaller of the two products
    x = (wide / (torch.linalg.matrix_norm(at_least_float32(wide), keepdim=True) + _EPS)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def update_scale(rows: int, columns: int) -> float:
    """Return the factor that scales an orthogonal matrix to an update: 0.2 · sqrt(max(rows, columns)).

    The elements of an orthogonal matrix have a root mean square of `1 / sqrt(max(rows, columns))`, so the update has
    0.2 for any shape, about as AdamW's updates (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4). So both
    optimizers can share a learning rate and a weight decay. Jordan's own scale, `sqrt(max(1, rows / columns))`, needs
    a separate learning rate; for a square matrix of width d it is equal to this scale with `lr · 0.2 · sqrt(d)`.
    """
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    With gradient G and the group's settings, for each matrix W:

        M ← momentum · M + (1 − momentum) · G
        O ← orthogonalize((1 − momentum) · G + momentum · M)
        W ← W − lr · weight_decay · W
        W ← W − lr · update_scale · O

    Matrices of the same shape, up to transposition, are orthogonalised as one batch, in `dtype`; the momentum is at
    least float32. A matrix that is sharded over processes (a DTensor) is gathered and orthogonalised by every process,
    which keeps its shard. Raises `ConfigError` for settings out of range and for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ConfigError(f"{name} must not be negative (got {value})")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum must be at least 0 and below 1 (got {momentum})")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim != 2:
                    raise ConfigError(f"Muon updates matrices only (got shape {tuple(param.shape)}); use AdamW")

    @torch.no_grad()
    def step(self, *, gradient_scale: Tensor | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; `gradient_scale` is as in `AdamW.step`."""
        for group, params in with_gradients(self.param_groups):
            self._update(params, group, gradient_scale)

    def _update(self, params: list[Tensor], group: dict[str, Any], gradient_scale: Tensor | None) -> None:
        taken = torch.ones((), device=params[0].device)
        if gradient_scale is not None:
            taken = (gradient_scale > 0).to(taken)
        directions = [self._direction(p, group["momentum"], gradient_scale) for p in params]
        for batch in _batches(params):
            wide = torch.stack([_lying(whole(directions[i])) for i in batch])
            for i, update in zip(batch, orthogonalize(wide, self.dtype).unbind(), strict=True):
                rows, columns = params[i].shape
                update = sharded_like(params[i], update.mT if rows > columns else update)
                param = local_piece(params[i])
                param.mul_(1 - group["lr"] * group["weight_decay"] * taken)
                param.sub_(local_piece(update) * (group["lr"] * update_scale(rows, columns) * taken))

    def _direction(self, param: Tensor, decay: float, gradient_scale: Tensor | None) -> Tensor:
        """Update the momentum of `param`, unless the step is skipped; return the Nesterov direction."""
        assert param.grad is not None
        momentum = self._momentum(param)
        grad, taken = scaled_gradient(local_piece(param.grad), gradient_scale)
        local_piece(momentum).lerp_(grad, (1 - decay) * taken)
        direction = torch.empty_like(momentum, dtype=self.dtype)  # with the same sharding
        local_piece(direction).copy_(grad.lerp(local_piece(momentum), decay))
        return direction

    def _momentum(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param, dtype=_momentum_dtype(param))
        return state["momentum"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`, bit for bit; raise `ValueError` if it is from another kind of optimizer."""
        if any("momentum" not in saved for saved in state_dict["state"].values()):
            raise ValueError("the state is not Muon's: it lacks momentum")
        super().load_state_dict(state_dict)
        # The base class rounds the momentum to the parameter's type, and may share its memory.
        for saved_group, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for name, param in zip(saved_group["params"], group["params"], strict=True):
                if name in state_dict["state"]:
                    saved = state_dict["state"][name]["momentum"]
                    self.state[param]["momentum"] = saved.to(param.device, _momentum_dtype(param), copy=True)


def _momentum_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _batches(params: Sequence[Tensor]) -> list[list[int]]:
    """Return batches of indices of `params`: the same shape up to transposition, and limited in size."""
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for i, param in enumerate(params):
        of_shape.setdefault(tuple(sorted(param.shape)), []).append(i)
    batches = []
    for (short, long), indices in of_shape.items():
        size = max(1, _BATCH_ELEMENTS // (short * long))
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


def _lying(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
