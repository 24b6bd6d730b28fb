"""The loss in chunks against the plain one: value, gradients, memory."""

import pytest
import torch
from torch import Tensor, nn

from transformerlm.fast.chunked_loss import ChunkedLoss, linear_cross_entropy, loss_and_gradient
from transformerlm.models import TransformerLM
from transformerlm.training.loss import NextTokenLoss, cross_entropy

VOCABULARY = 50


def case(rows: int = 37, width: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(rows, width, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, width, generator=draw).requires_grad_()
    return features, weight, torch.randint(0, VOCABULARY, (rows,), generator=draw)


def plain(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(features @ weight.to(features.dtype).T, targets).sum()


@pytest.mark.parametrize("chunk_rows", [1, 8, 36, 37, 100])
def test_equals_the_plain_loss_and_its_gradients(chunk_rows: int) -> None:
    features, weight, targets = case()
    expected = plain(features, weight, targets)
    gradients = torch.autograd.grad(3 * expected, (features, weight))
    found = linear_cross_entropy(features, weight, targets, chunk_rows=chunk_rows)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(3 * found, (features, weight)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(features, weight, targets, chunk_rows=chunk_rows), expected)


def test_double_precision_agrees_to_its_own_digits() -> None:
    features, weight, targets = (tensor.double() if tensor.is_floating_point() else tensor for tensor in case())
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w: linear_cross_entropy(f, w, targets, chunk_rows=8), (features, weight), fast_mode=True
    )


def test_the_gradient_of_a_float32_weight_is_summed_in_float32_under_bfloat16_features() -> None:
    features, weight, targets = case(dtype=torch.bfloat16)
    expected = torch.autograd.grad(plain(features.float(), weight, targets), weight)[0]
    found = torch.autograd.grad(linear_cross_entropy(features, weight, targets, chunk_rows=8), (features, weight))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(found[1], expected, rtol=0.05, atol=0.05)  # bf16 has 8 bits


def test_a_confident_row_keeps_its_small_gradient_in_bfloat16() -> None:
    logits = torch.zeros(1, VOCABULARY, dtype=torch.bfloat16)
    logits[0, 3] = 12.0
    _, gradient = loss_and_gradient(logits, torch.tensor([3]))
    exact = torch.softmax(logits.double(), -1)[0, 3] - 1
    assert gradient[0, 3].double() == pytest.approx(exact.item(), rel=1e-2)  # not 0, as bf16(p) − 1 would be


def test_logits_are_never_whole_in_memory() -> None:
    rows, chunk = 512, 8
    features, weight, targets = case(rows)
    sizes: list[int] = []

    def spy(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(logits.numel())
        return loss_and_gradient(logits, ids)

    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        linear_cross_entropy(features, weight, targets, chunk_rows=chunk, rows=spy).backward()
    assert sizes == [chunk * VOCABULARY] * (rows // chunk)
    assert sorted(kept) == sorted([features.numel(), weight.numel()])


@pytest.mark.parametrize("tied", [False, True])
def test_a_models_loss_is_that_of_its_logits(tied: bool) -> None:
    torch.manual_seed(0)
    model = TransformerLM(VOCABULARY, 8, 16, 2, 2, 32, tie_embeddings=tied)
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(0, VOCABULARY, (2, 3, 8), generator=draw)
    expected = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(NextTokenLoss(model)(inputs, targets), expected, rtol=1e-6, atol=1e-6)
    loss = ChunkedLoss(model, chunk_rows=5)
    found = loss(inputs, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(found, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    padded = torch.cat((inputs, torch.zeros(2, 8, dtype=torch.long)))
    evaluated = loss.eval()(padded, targets)  # rows of inputs without targets are padding
    torch.testing.assert_close(evaluated, expected, rtol=1e-6, atol=1e-6)
    assert not evaluated.requires_grad
