"""Same result as `training.loss.NextTokenLoss`, except for the order of sums.

Tested in tests/fast/test_chunked_loss.py.

The logits are the largest tensor of a step: 16,384 tokens and a vocabulary of 50,304 make 3.3 GB of float32, and their
gradient takes as much again. But a row of logits is needed only to add to the loss and to compute its own gradient, so
`linear_cross_entropy` computes them in chunks:

    features (N, D) ──chunk──▶ logits (C, V) ──▶ loss, and at once d_logits = softmax − one-hot
                                                  ├─▶ d_features of the chunk  = d_logits W
                                                  └─▶ d_weight                += d_logitsᵀ features

Since the loss is a scalar, the forward pass can compute the gradients too; backward only scales them.
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

RowsFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

CHUNK_ROWS = {"cuda": 4096, "cpu": 2048}
"""Rows of logits at a time, by device type. Each chunk reads and writes the gradient of the whole weight, so small
chunks are slow (on a CPU at width 512, chunks of 128 take 1.3 times as long as 2,048); larger ones are hardly
faster."""


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
    if torch.compiler.is_compiling():  # the compiler fuses a comparison, but not a scatter
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
            chunk = slice(start, start + chunk_rows)
            loss, d_logits = rows(features[chunk] @ rounded.T, targets[chunk])
            total += loss
            torch.mm(d_logits, rounded, out=d_features[chunk])
            if d_weight.dtype == d_logits.dtype:
                d_weight.addmm_(d_logits.T, features[chunk])
            else:
                d_weight += d_logits.T @ features[chunk]
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
    """Return the summed cross-entropy of the logits `features @ weight.T`, which are never all in memory.

    Equal, with its gradients, to `cross_entropy(features @ weight.T, targets).sum()`, except for the order of
    sums. The product has the type of the features; the gradient of `weight` is summed in the type of `weight`.

    Args:
        features: (..., D).
        weight: (V, D).
        targets: integer ids, (...), each below V.
        chunk_rows: rows of logits in memory at a time.
        rows: `loss_and_gradient`, or a compiled version of it.
    """
    if features.shape[:-1] != targets.shape:
        raise ConfigError(
            f"features of shape {tuple(features.shape)} need targets of shape {tuple(features.shape[:-1])} "
            f"(got {tuple(targets.shape)})"
        )
    features, targets = features.flatten(0, -2), targets.flatten()
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(features, weight, targets, chunk_rows, rows)  # type: ignore[no-any-return]
    sums = score_in_chunks(_summed_cross_entropy, features, weight, targets, chunk_rows=chunk_rows)
    return torch.stack(sums).sum()


ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (C, V) and the ids (C,) that came next to scores (…, C)."""


def score_in_chunks(
    score: ScoreFunction, features_ND: Tensor, weight: Tensor, targets_N: Tensor, *, chunk_rows: int
) -> list[Tensor]:
    """Return `score(logits, targets)` for each chunk of rows of the logits `features @ weight.T`.

    For evaluation: the logits of only one chunk are in memory at a time.
    """
    rounded = weight.to(features_ND.dtype)
    chunks = zip(features_ND.split(chunk_rows), targets_N.split(chunk_rows), strict=True)
    return [score(features_CD @ rounded.T, targets_C) for features_CD, targets_C in chunks]


def _summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    return -log_probs.gather(-1, targets.unsqueeze(-1)).sum()


class ChunkedLoss(nn.Module):
    """A `NextTokenLoss` that has at most `chunk_rows` rows of logits in memory; also scores single tokens.

    `rows` is `loss_and_gradient` or a compiled version of it.
    """

    def __init__(
        self,
        model: TransformerLM,
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
        """Return the cross-entropy in nats, summed over the targets; in evaluation mode without a gradient.

        Inputs may have more rows than targets: padding, which keeps the shape that a model was compiled for.
        """
        mask = None if self.make_mask is None else self.make_mask(inputs_BT)
        features_BTD = self.model.hidden_states(inputs_BT, mask=mask)[: len(targets_BT)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            return linear_cross_entropy(
                features_BTD, self.model.output_weight, targets_BT, chunk_rows=self.chunk_rows, rows=self.rows
            )

    def score(
        self,
        score: ScoreFunction,
        inputs_BT: Tensor,
        places_N: Tensor,
        targets_N: Tensor,
        *,
        token_positions: Tensor | None = None,
        mask: AttentionMask | None = None,
    ) -> Tensor:
        """Return `score` of single targets, (…, N). Logits are computed only for these.

        Args:
            score: maps logits (C, V) and targets (C,) to (…, C).
            inputs_BT: ids.
            places_N: for each target, the index of the id before it in the flattened (B · T) inputs.
            targets_N: ids.
            token_positions, mask: as in `TransformerLM.hidden_states`; without a mask `make_mask` makes it.
        """
        if mask is None and self.make_mask is not None:
            mask = self.make_mask(inputs_BT)
        features_BTD = self.model.hidden_states(inputs_BT, token_positions, mask=mask)
        features_ND = features_BTD.flatten(0, 1).index_select(0, places_N)
        weight = self.model.output_weight
        return torch.cat(score_in_chunks(score, features_ND, weight, targets_N, chunk_rows=self.chunk_rows), dim=-1)
