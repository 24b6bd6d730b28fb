"""One step: the learning rate it uses, the gradients it sees, and what a bad loss does."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformerlm.distributed.group import World
from transformerlm.distributed.sharding import Parallelism
from transformerlm.fast.chunked_loss import ChunkedLoss
from transformerlm.hparams import TrainingHparams
from transformerlm.models import TransformerLM
from transformerlm.models.attention import grouped_attention
from transformerlm.models.layers import rotate_pairs
from transformerlm.training import Trainer, lr_cosine_schedule
from transformerlm.training.loss import NextTokenLoss
from transformerlm.training.optim import adamw_update
from transformerlm.utils.errors import ConfigError

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def batch() -> Batch:
    """Four rows of sixteen ids and what follows them."""
    ids = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def spoiled(model: TransformerLM, *factors: float) -> TransformerLM:
    """Return `model`, whose logits are multiplied by `factors`, one per training pass."""
    left = list(factors)
    model.ln_final.register_forward_hook(lambda m, _ins, out: out * left.pop(0) if m.training and left else out)
    return model


def gradients(trainer: Trainer, batch: Batch) -> list[Tensor]:
    """Return the gradients as the optimizer sees them: after clipping."""
    found: list[Tensor] = []

    def spy(*, gradient_scale: Tensor) -> None:
        found.extend(p.grad * gradient_scale for p in trainer.model.parameters() if p.grad is not None)

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    assert trainer.step(1, batch).applied
    return found


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("mask_after", [None, 7], ids=["", "masked"])
@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_have_the_gradients_of_the_whole(
    rows: int, mask_after: int | None, batch: Batch, make_trainer: Callable[..., Trainer]
) -> None:
    whole = gradients(make_trainer(max_grad_norm=1e9, mask_after=mask_after), batch)
    pieces = gradients(make_trainer(max_grad_norm=1e9, micro_batch_size=rows, mask_after=mask_after), batch)
    for expected, found in zip(whole, pieces, strict=True):
        # float32 sums in another order: some units in the last of 24 bits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    results = [make_trainer(micro_batch_size=size, mask_after=mask_after).step(1, batch) for size in (None, rows)]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)


def test_a_step_is_that_of_plain_pytorch(
    batch: Batch, make_trainer: Callable[..., Trainer], make_model: Callable[..., TransformerLM]
) -> None:
    trainer, model = make_trainer(), make_model()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(1, 6):
        result = trainer.step(step, batch)
        for group in oracle.param_groups:
            group["lr"] = lr_cosine_schedule(step, 1e-2, 1e-3, 3, 12)
        loss = nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
        oracle.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        oracle.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for expected, found in zip(model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_is_set_before_the_step(batch: Batch, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    used: list[set[float]] = []
    trainer.optimizer.step = lambda **_: used.append(  # type: ignore[method-assign]
        {group["lr"] for group in trainer.optimizer.param_groups}
    )
    results = [trainer.step(step, batch) for step in range(1, 14)]
    expected = [lr_cosine_schedule(step, 1e-2, 1e-3, 3, 12) for step in range(1, 14)]
    assert [result.learning_rate for result in results] == expected
    assert used == [{rate} for rate in expected]
    assert expected[0] == pytest.approx(1e-2 / 3)  # the first step learns
    assert expected[2] == pytest.approx(1e-2)
    assert expected[-1] == pytest.approx(1e-3)


def test_gradients_are_clipped_but_the_norm_is_the_one_before(
    batch: Batch, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(max_grad_norm=0.01)
    found = gradients(trainer, batch)
    norm = torch.cat([gradient.flatten() for gradient in found]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert make_trainer(max_grad_norm=0.01).step(1, batch).grad_norm > 0.1
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [4, 2])
def test_a_step_that_is_not_finite_changes_nothing(
    factor: float,
    rows: int,
    batch: Batch,
    make_trainer: Callable[..., Trainer],
    make_model: Callable[..., TransformerLM],
) -> None:
    passes = 4 // rows
    trainer = make_trainer(spoiled(make_model(), *[1.0] * passes, *[1.0] * (passes - 1), factor), micro_batch_size=rows)
    clean = make_trainer(spoiled(make_model()), micro_batch_size=rows)
    assert trainer.step(1, batch).applied
    before, state = weights(trainer), copy.deepcopy(trainer.optimizer.state_dict()["state"])
    result = trainer.step(2, batch)
    assert not result.applied
    assert not math.isfinite(result.loss)
    assert all(map(torch.equal, weights(trainer), before))
    torch.testing.assert_close(trainer.optimizer.state_dict()["state"], state, rtol=0, atol=0)
    clean.step(1, batch)
    assert trainer.step(3, batch).loss == clean.step(3, batch).loss
    assert all(map(torch.equal, weights(trainer), weights(clean)))


def test_a_gradient_alone_may_be_not_finite(
    batch: Batch, make_trainer: Callable[..., Trainer], make_model: Callable[..., TransformerLM]
) -> None:
    trainer = make_trainer(model := make_model())
    model.ln_final.weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights(trainer)
    result = trainer.step(1, batch)
    assert math.isfinite(result.loss)
    assert not math.isfinite(result.grad_norm)
    assert not result.applied
    assert all(map(torch.equal, weights(trainer), before))


def test_evaluation_is_the_mean_over_tokens_and_changes_nothing(
    batch: Batch, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer()
    before = weights(trainer)
    pieces = [(batch[0][:3], batch[1][:3]), (batch[0][3:], batch[1][3:])]
    loss = trainer.evaluate(pieces)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(trainer.model(batch[0]).flatten(0, 1), batch[1].flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert loss == trainer.evaluate(pieces)
    assert trainer.model.training
    assert all(map(torch.equal, weights(trainer), before))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_evaluation_that_fails_leaves_the_model_in_training_mode(
    batch: Batch, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer()
    with pytest.raises(ValueError, match="targets"):
        trainer.evaluate([(batch[0], batch[1][:, 1:])])
    assert trainer.model.training


@pytest.mark.parametrize(("micro_batch_size", "world", "rows"), [(8, 2, 4), (8, 4, 2), (2, 2, 2), (None, 2, 4)])
def test_validation_of_a_compiled_model_has_the_shape_of_training(
    micro_batch_size: int | None, world: int, rows: int, batch: Batch, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(batch_size=8, micro_batch_size=micro_batch_size)
    trainer.parallelism = Parallelism(World(size=world))
    pieces = list(trainer._in_training_shape([batch, (batch[0][:1], batch[1][:1])]))
    assert {inputs.shape for inputs, _ in pieces} == {(rows, 16)}
    assert sum(len(targets) for _, targets in pieces) == 5


def test_training_and_validation_see_the_same_mask(batch: Batch, make_trainer: Callable[..., Trainer]) -> None:
    batch[0][:, 8] = 7
    masked, plain = make_trainer(mask_after=7), make_trainer()
    expected = masked.evaluate([batch])
    assert abs(expected - plain.evaluate([batch])) > 1e-3
    assert masked.step(1, batch).loss == pytest.approx(expected, rel=1e-6)


def test_bfloat16_runs_with_float32_weights(batch: Batch, make_trainer: Callable[..., Trainer]) -> None:
    exact, rounded = make_trainer(), make_trainer(dtype=torch.bfloat16)
    for step in range(1, 4):
        expected, found = exact.step(step, batch), rounded.step(step, batch)
        assert found.applied
        assert found.loss == pytest.approx(expected.loss, rel=0.02)
        assert found.loss != expected.loss
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert rounded.evaluate([batch]) == pytest.approx(exact.evaluate([batch]), rel=0.02)


def test_a_pattern_is_learned(make_trainer: Callable[..., Trainer]) -> None:
    ids = (torch.arange(17) % 5).repeat(4, 1)
    trainer = make_trainer(steps=60)
    losses = [trainer.step(step, (ids[:, :-1], ids[:, 1:])).loss for step in range(1, 61)]
    assert losses[0] > 3
    assert losses[-1] < 0.1


def test_options_of_the_model_train_too(
    batch: Batch, make_trainer: Callable[..., Trainer], make_model: Callable[..., TransformerLM]
) -> None:
    trainer = make_trainer(make_model(tie_embeddings=True, qk_norm=True, num_kv_heads=1))
    losses = [trainer.step(step, batch).loss for step in range(1, 9)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "settings", [{}, {"micro_batch_size": 2}, {"mask_after": 7}], ids=["", "micro-batches", "masked"]
)
@pytest.mark.parametrize(
    "shape", [{}, {"tie_embeddings": True, "qk_norm": True, "num_kv_heads": 1}], ids=["", "options"]
)
def test_the_core_alone_gives_the_losses_of_the_fast_versions(
    settings: dict[str, Any],
    shape: dict[str, Any],
    batch: Batch,
    make_trainer: Callable[..., Trainer],
    make_model: Callable[..., TransformerLM],
) -> None:
    batch[0][:, 8] = 7
    fast, plain = (make_trainer(make_model(**shape), fast=fast, **settings) for fast in (True, False))
    for step in range(1, 9):
        expected, found = fast.step(step, batch), plain.step(step, batch)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    assert plain.evaluate([batch]) == pytest.approx(fast.evaluate([batch]), rel=1e-5)


def test_without_fast_nothing_is_replaced(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(fast=False)
    assert type(trainer.loss) is NextTokenLoss
    assert all(layer.attn.attend is grouped_attention for layer in trainer.model.layers)
    assert all(layer.attn.rotate is rotate_pairs for layer in trainer.model.layers)
    assert trainer.optimizer.update is adamw_update
    assert not trainer.compilation.active
    assert type(make_trainer(fast=True).loss) is ChunkedLoss


@pytest.mark.parametrize(
    "settings",
    [{"compile": True}, {"activation_checkpointing": True}, {"loss_chunk_rows": 8}],
    ids=lambda s: next(iter(s)),
)
def test_settings_of_the_fast_versions_need_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}.*needs fast = true"):
        TrainingHparams.checked(fast=False, **settings)
