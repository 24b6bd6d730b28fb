"""The training loss: cross-entropy between logits and the token that came next, plain and in chunks.

The logits are the largest tensor of a step: 16,384 tokens and a vocabulary of 50,304 make 3.3 GB of float32, and
their gradient as much again. But each row of them is needed by itself only, to add to the loss and to give a row of
gradients. So `linear_cross_entropy` goes through the rows in chunks:

    features (N, D) ──chunk──▶ logits (C, V) ──▶ loss, and at once d_logits = softmax − one-hot
                                                  ├─▶ d_features of the chunk  = d_logits W
                                                  └─▶ d_weight                += d_logitsᵀ features

The gradients are known before the backward pass begins, since the loss is a scalar: it has but to multiply them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from transformerlm.models import TransformerLM
from transformerlm.models.attention import AttentionMask
from transformerlm.utils.dtypes import at_least_float32
from transformerlm.utils.errors import ConfigError


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `-log softmax(logits)[target]` in nats at every position, in float32.

    `.mean()` of it is the loss; `exp` of that the perplexity. The largest logit is subtracted before
    exponentiation (inside `log_softmax`), so that logits of any size neither overflow nor lose the loss.

    Args:
        logits: (..., V).
        targets: integer ids, (...), each below V.
    """
    if logits.shape[:-1] != targets.shape:
        raise ConfigError(
            f"logits of shape {tuple(logits.shape)} need targets of shape {tuple(logits.shape[:-1])} "
            f"(got {tuple(targets.shape)})"
        )
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


RowsFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

CHUNK_ROWS = {"cuda": 4096, "cpu": 2048}
"""Rows of logits at a time, by device. Each chunk goes over the gradient of the whole weight once, to add to it, so
few rows are slow (measured on a CPU, width 512: 128 take 1.3 times as long as 2,048); more are hardly faster."""


def chunk_rows_for(device: torch.device) -> int:
    """Return how many rows of logits to have in memory at a time."""
    return CHUNK_ROWS.get(device.type, CHUNK_ROWS["cpu"])


def loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of rows of logits (C, V), and its gradient: softmax − one-hot.

    The gradient has the logits' type; both are computed in float32.
    """
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    index = targets.unsqueeze(-1)
    loss = -log_probs.gather(-1, index).sum()
    if torch.compiler.is_compiling():  # a mask becomes part of the loop that computes the rest
        vocabulary = torch.arange(logits.shape[-1], device=logits.device)
        gradient = log_probs.exp() - (vocabulary == index).to(log_probs.dtype)
    else:
        gradient = log_probs.exp_().scatter_add_(-1, index, log_probs.new_full(index.shape, -1))
    return loss, gradient.to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, rows: RowsFunction
    ) -> Tensor:
        rounded = weight.to(features.dtype)
        d_features = torch.empty_like(features)
        d_weight = torch.zeros_like(weight)
        total = features.new_zeros((), dtype=torch.promote_types(features.dtype, torch.float32))
        for start in range(0, len(features), chunk_rows):
            piece = slice(start, start + chunk_rows)
            loss, d_logits = rows(features[piece] @ rounded.T, targets[piece])
            total += loss
            torch.mm(d_logits, rounded, out=d_features[piece])
            if d_weight.dtype == d_logits.dtype:
                d_weight.addmm_(d_logits.T, features[piece])
            else:
                d_weight += d_logits.T @ features[piece]
        ctx.save_for_backward(d_features, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        d_features, d_weight = ctx.saved_tensors
        return d_features * d_total.to(d_features.dtype), d_weight * d_total.to(d_weight.dtype), None, None, None


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_rows: int,
    rows: RowsFunction = loss_and_gradient,
) -> Tensor:
    """Return the summed cross-entropy of the logits `features @ weight.T`, which are never whole in memory.

    Equal to `cross_entropy(features @ weight.T, targets).sum()`, gradients too, but for the order of sums. The
    product runs in the type of the features; the gradient of `weight` is summed in the type of `weight`.

    Args:
        features: (..., D).
        weight: (V, D).
        targets: integer ids, (...), each below V.
        chunk_rows: rows of logits in memory at a time.
        rows: `loss_and_gradient`, or a compiled version of it.
    """
    features, targets = features.flatten(0, -2), targets.flatten()
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(features, weight, targets, chunk_rows, rows)  # type: ignore[no-any-return]
    sums = score_in_chunks(_summed_cross_entropy, features, weight, targets, chunk_rows=chunk_rows)
    return torch.stack(sums).sum()


ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (C, V) and the ids (C,) that came next to what is wanted of them."""


def score_in_chunks(
    score: ScoreFunction, features_ND: Tensor, weight: Tensor, targets_N: Tensor, *, chunk_rows: int
) -> list[Tensor]:
    """Return `score(logits, targets)` of `chunk_rows` rows of the logits `features @ weight.T` after another.

    So they are never whole in memory. For evaluation: nothing is kept for a backward pass but what `score` keeps.
    """
    rounded = weight.to(features_ND.dtype)
    pieces = zip(features_ND.split(chunk_rows), targets_N.split(chunk_rows), strict=True)
    return [score(piece @ rounded.T, ids) for piece, ids in pieces]


def _summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets).sum()


class NextTokenLoss(nn.Module):
    """A model and its loss as one module: what is wrapped and sharded for several devices is its `forward`.

    Any module that maps ids (B, T) to logits (B, T, V) will do; a `TransformerLM`'s loss is computed in chunks of
    `chunk_rows` tokens, by `rows`: `loss_and_gradient`, or a compiled version of it. With `make_mask` the model is
    given, once for all of its layers, the mask that this makes of the inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        chunk_rows: int,
        rows: RowsFunction = loss_and_gradient,
        make_mask: Callable[[Tensor], AttentionMask] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.chunk_rows = chunk_rows
        self.rows = rows
        self.make_mask = make_mask

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the cross-entropy in nats, summed over the targets; its gradient too, but in evaluation mode.

        Rows of inputs beyond those of targets are padding: a compiled model wants the shape that it knows.
        """
        rows = slice(len(targets_BT))
        mask = {} if self.make_mask is None else {"mask": self.make_mask(inputs_BT)}
        if not isinstance(self.model, TransformerLM):
            return cross_entropy(self.model(inputs_BT, **mask)[rows], targets_BT).sum()
        features_BTD = self.model.hidden_states(inputs_BT, **mask)[rows]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            return linear_cross_entropy(
                features_BTD, self.model.output_weight, targets_BT, chunk_rows=self.chunk_rows, rows=self.rows
            )

    def score(
        self,
        inputs_BT: Tensor,
        places_N: Tensor,
        targets_N: Tensor,
        *,
        token_positions: Tensor | None = None,
        mask: AttentionMask | None = None,
        score: ScoreFunction = cross_entropy,
    ) -> Tensor:
        """Return `score` of single targets, by default their cross-entropy in nats, (N,).

        Logits are made of what is scored only. For evaluation, and for a `TransformerLM`.

        Args:
            inputs_BT: ids.
            places_N: for each target the place in the flattened (B · T) inputs of the id that it comes after.
            targets_N: ids.
            token_positions, mask: as of `TransformerLM.hidden_states`; without a mask that of `make_mask` is used.
            score: maps logits (C, V) and targets (C,) to (…, C).
        """
        assert isinstance(self.model, TransformerLM), "single tokens are scored by the features of a language model"
        if mask is None and self.make_mask is not None:
            mask = self.make_mask(inputs_BT)
        features_BTD = self.model.hidden_states(inputs_BT, token_positions, mask=mask)
        features_ND = features_BTD.flatten(0, 1).index_select(0, places_N)
        weight = self.model.output_weight
        return torch.cat(score_in_chunks(score, features_ND, weight, targets_N, chunk_rows=self.chunk_rows), dim=-1)
