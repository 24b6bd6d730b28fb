"""Cross-entropy against PyTorch's, in value and gradient."""

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.training.loss import cross_entropy
from transformerlm.utils.errors import ConfigError


@settings(max_examples=30)
@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    vocab=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_equals_torch_with_gradients(leading: list[int], vocab: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*leading, vocab, generator=draw)
    targets = torch.randint(vocab, leading, generator=draw)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = cross_entropy(ours, targets)
    expected = functional.cross_entropy(theirs.reshape(-1, vocab), targets.reshape(-1), reduction="none").reshape(
        targets.shape
    )
    torch.testing.assert_close(losses, expected)
    losses.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [1000.0, 999.0, 0.0]])
    losses = cross_entropy(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 1.3132617]))


def test_impossible_tokens_may_have_minus_infinity() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.6931472)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_low_precision_logits_have_a_float32_loss() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([0, 3, 5, 8])
    losses = cross_entropy(logits, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, cross_entropy(logits.float(), targets))


def test_gradient_in_double_precision() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([0, 4, 2])), logits)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"need targets of shape \(2, 3\) \(got \(6,\)\)"):
        cross_entropy(torch.zeros(2, 3, 5), torch.zeros(6, dtype=torch.long))
