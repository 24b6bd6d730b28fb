"""Choose the update rule, learning rate and weight decay of each parameter.

    role         what                                          decays   learning rate          muon   adamw
    hidden       matrices from activations to activations      yes      × 1                    Muon   AdamW
    embeddings   the token table (tied: the output layer too)  yes      × embedding_lr_scale   AdamW  AdamW
    head         the output layer                              yes      × 1                    AdamW  AdamW
    vectors      gains of the norms, biases                    no       × 1                    AdamW  AdamW

Weight decay is for weights that multiply activations: a norm's gains should stay near one, not zero, and biases
multiply nothing. A row of the token table gets a gradient only when its token occurs, so embeddings tolerate, and
need, a higher learning rate than matrices, which get one at every position (Yang et al. 2022, "Tensor Programs V",
table 3: with Adam, only the rate of matrices falls with the width).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from transformerlm.hparams import OptimizerHparams
from transformerlm.models.layers import Embedding
from transformerlm.training.combined import CombinedOptimizer
from transformerlm.training.muon import Muon
from transformerlm.training.optim import AdamW, adamw_update

_HEAD = "lm_head.weight"


def parameter_roles(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters by role: hidden, embeddings, head and vectors; roles may be empty."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, Embedding | nn.Embedding)}
    roles: dict[str, list[nn.Parameter]] = {"hidden": [], "embeddings": [], "head": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            role = "embeddings"
        elif parameter.ndim < 2:
            role = "vectors"
        else:
            role = "head" if f".{name}".endswith(f".{_HEAD}") else "hidden"
        roles[role].append(parameter)
    return roles


def parameter_groups(model: nn.Module, weight_decay: float, *, embedding_lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """Return the optimizer's groups, one per role, without empty ones.

    Each group also has its `role` and an `lr_scale`, which multiplies the schedule's learning rate.
    """
    return [
        {
            "params": parameters,
            "role": role,
            "lr_scale": embedding_lr_scale if role == "embeddings" else 1.0,
            "weight_decay": 0.0 if role == "vectors" else weight_decay,
        }
        for role, parameters in parameter_roles(model).items()
        if parameters
    ]


def build_optimizer(
    model: nn.Module,
    hparams: OptimizerHparams,
    *,
    dtype: torch.dtype = torch.float32,
    update: Callable[..., None] = adamw_update,
) -> AdamW | CombinedOptimizer:
    """Return the optimizer that `hparams` describe; `set_learning_rate` gives it its learning rates.

    `dtype` is the type of the matrix products, also in Muon. `update` is AdamW's arithmetic.
    """
    groups = parameter_groups(model, hparams.weight_decay, embedding_lr_scale=hparams.embedding_lr_scale)
    hidden = [group for group in groups if group["role"] == "hidden"]
    others = [group for group in groups if group["role"] != "hidden"]
    adamw: dict[str, Any] = {"lr": 0.0, "betas": (hparams.beta1, hparams.beta2), "eps": hparams.eps, "update": update}
    if hparams.name == "adamw":
        return AdamW(groups, **adamw)
    return CombinedOptimizer(
        Muon(hidden, lr=0.0, momentum=hparams.muon_momentum, dtype=dtype),
        AdamW(others, **adamw),
    )


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set every group's learning rate: the schedule's times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def load_optimizer(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load the state of a resumed run, but keep the present settings.

    `Optimizer.load_state_dict` alone would restore the saved settings too, such as the weight decay.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, present in zip(optimizer.param_groups, settings, strict=True):
        group.update(present)
