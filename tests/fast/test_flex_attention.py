"""Attention inside documents: what the masks say, and that a masked window has the numbers of its documents apart."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.checkpoint import checkpoint

from transformerlm.fast.apply import blocks_of, make_fast
from transformerlm.fast.attention import fused_attention
from transformerlm.fast.chunked_loss import ChunkedLoss
from transformerlm.fast.flex_attention import (
    attend_in_blocks,
    block_mask,
)
from transformerlm.hparams import ModelHparams, TrainingHparams
from transformerlm.models import TransformerLM
from transformerlm.models.attention import document_mask, document_numbers, grouped_attention
from transformerlm.models.build import build_model
from transformerlm.training.optim import adamw_update

CPU = torch.device("cpu")
END = 0
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3)


def long_rows(num_tokens: int, ends: list[list[int]]) -> Tensor:
    """Return rows of ids in which documents end at the places `ends`."""
    ids = torch.ones(len(ends), num_tokens, dtype=torch.int64)
    for row, places in enumerate(ends):
        ids[row, [place for place in places if place < num_tokens]] = END
    return ids


def documents_of(row: list[int]) -> list[slice]:
    """Return the documents of a row, each with the id that ends it."""
    ends = [place + 1 for place, token_id in enumerate(row) if token_id == END]
    bounds = [0, *ends, *([len(row)] if row[-1] != END else [])]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


def test_the_id_that_ends_a_document_belongs_to_it() -> None:
    ids = torch.tensor([[5, 6, END, 7, END, END, 8], [END, 5, 6, 7, 8, 9, 9]])
    assert document_numbers(ids, END).tolist() == [[0, 0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


@given(rows=ROWS)
def test_the_mask_lets_a_token_see_its_document_up_to_itself(rows: list[list[int]]) -> None:
    expected = torch.zeros(len(rows), 1, 9, 9, dtype=torch.bool)
    for number, row in enumerate(rows):
        for document in documents_of(row):
            length = document.stop - document.start
            expected[number, 0, document, document] = torch.ones(length, length).tril().bool()
    assert torch.equal(document_mask(torch.tensor(rows), END), expected)


@settings(max_examples=30)
@given(
    num_tokens=st.sampled_from([1, 127, 128, 129, 256, 400, 640]),
    ends=st.lists(st.lists(st.integers(0, 639), max_size=8), min_size=1, max_size=3),
)
def test_the_mask_of_blocks_is_that_which_pytorch_makes_of_the_plain_one(
    num_tokens: int, ends: list[list[int]]
) -> None:
    ids = long_rows(num_tokens, ends)
    found, plain = block_mask(ids, END), document_mask(ids, END)
    expected = create_block_mask(
        lambda b, _h, q, k: plain[b, 0, q, k], len(ids), 1, num_tokens, num_tokens, device="cpu"
    )
    assert found.shape == expected.shape
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    pairs = [("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")]
    pairs += [("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")]
    for numbers, indices in pairs:
        assert torch.equal(getattr(found, numbers), getattr(expected, numbers))
        assert torch.equal(getattr(found, indices), getattr(expected, indices))
    rows, heads, queries, keys = torch.meshgrid(*map(torch.arange, plain.shape), indexing="ij")
    assert torch.equal(found.mask_mod(rows, heads, queries, keys), plain)


@pytest.mark.parametrize("num_tokens", [200, 256])
@pytest.mark.parametrize("num_kv_heads", [2, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_flex_attention_equals_the_plain_ones(
    dtype: torch.dtype, tolerance: float, num_kv_heads: int, num_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = (2, num_kv_heads, num_kv_heads)
    qkv = [torch.randn(2, count, num_tokens, 16, dtype=dtype, generator=generator) for count in heads]
    ids = long_rows(num_tokens, [[3, 50, 140], []])
    found = attend_in_blocks(*qkv, block_mask(ids, END))
    for plain in (fused_attention, grouped_attention):
        torch.testing.assert_close(found, plain(*qkv, document_mask(ids, END)), rtol=0, atol=tolerance)
    assert torch.equal(attend_in_blocks(*qkv, None, True), fused_attention(*qkv, None, True))


def gradients(attend: Callable[..., Tensor], mask: Any, qkv: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    leaves = [tensor.clone().requires_grad_() for tensor in qkv]
    output = attend(*leaves, mask)
    output.square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.fixture
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts PyTorch's refusal of FlexAttention's gradients on a CPU: it has them there, if only as a reference."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("stance", ["default", "force_eager"])
def test_flex_attention_has_the_gradients_of_the_plain_one(stance: str) -> None:
    """Also where nothing is compiled on purpose, as before the first step of several processes."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, heads, 200, 16, dtype=torch.float64, generator=generator) for heads in (2, 1, 1)]
    ids = long_rows(200, [[3, 50, 140], []])
    with torch.compiler.set_stance(stance):
        found = gradients(attend_in_blocks, block_mask(ids, END), qkv)
    for value, expected in zip(found, gradients(fused_attention, document_mask(ids, END), qkv), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compiled", [True, False])
def test_flex_attention_has_the_gradients_of_the_plain_one_on_cuda(compiled: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = [torch.randn(2, 4, 400, 64, device="cuda", generator=generator) for _ in range(3)]
    ids = long_rows(400, [[3, 50, 140], []]).cuda()
    attend = torch.compile(attend_in_blocks, dynamic=False, fullgraph=True) if compiled else attend_in_blocks
    found = gradients(attend, block_mask(ids, END), qkv)
    for value, expected in zip(found, gradients(fused_attention, document_mask(ids, END), qkv), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-2, atol=2e-2)  # products in TF32


@pytest.mark.parametrize(
    ("device", "compiled", "num_heads", "in_blocks"),
    [("cuda", True, 2, True), ("cuda", False, 2, False), ("cpu", True, 2, False), ("cuda", True, 4, False)],
)
def test_flex_attention_is_for_compiled_runs_on_cuda(
    device: str, compiled: bool, num_heads: int, in_blocks: bool
) -> None:
    model = TransformerLM(12, 24, 32, 2, num_heads, 32)
    settings: dict[str, Any] = {"device": torch.device(device), "dtype": torch.float32, "compiled": compiled}
    make_mask = make_fast(model, adamw_update, training=TrainingHparams(), mask_after=END, **settings)[0].make_mask
    assert make_mask is not None
    ids = torch.tensor([[1, END, 1]])
    assert isinstance(make_mask(ids), flex_attention.BlockMask if in_blocks else Tensor)
    assert all((layer.attn.attend is attend_in_blocks) == in_blocks for layer in model.layers)
    assert make_fast(model, adamw_update, training=TrainingHparams(), **settings)[0].make_mask is None
    assert not any(layer.attn.attend is attend_in_blocks for layer in model.layers)


def make_loss(
    dtype: torch.dtype, attend: Callable[..., Tensor] = fused_attention, *, checkpointing: bool = False, **of: Any
) -> ChunkedLoss:
    """Return the masked loss of a small model."""
    shape = {"vocab_size": 12, "context_length": 24, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32}
    model = build_model(ModelHparams(**shape, **of), seed=0, dtype=dtype)
    settings: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "compiled": False, "mask_after": END}
    training = TrainingHparams(activation_checkpointing=checkpointing, loss_chunk_rows=7)
    loss, _ = make_fast(model, adamw_update, training=training, **settings)
    for layer in model.layers:
        layer.attn.attend = attend
    return loss


def batch(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Return windows in which documents end, one of them at the very end, and one in which none does."""
    ids = torch.randint(1, 12, (rows, 25), generator=torch.Generator().manual_seed(1))
    ids[0, [4, 5, 17]] = END
    ids[1, [11, 23]] = END
    return ids[:, :-1], ids[:, 1:]


def apart(model: TransformerLM, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the summed loss of every document by itself, without any mask."""
    loss = ChunkedLoss(model, chunk_rows=7)
    total = torch.zeros((), dtype=torch.float64)
    for row, ids in enumerate(inputs.tolist()):
        for document in documents_of(ids):
            total = total + loss(inputs[row : row + 1, document], targets[row : row + 1, document])
    return total


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    # The rotary tables are float32, so that the same difference of positions is 1e-6 off elsewhere in the window.
    [(torch.float64, 1e-6, 1e-6), (torch.float32, 1e-4, 1e-5)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("attend", [fused_attention, grouped_attention])
@pytest.mark.parametrize("of", [{}, {"num_kv_heads": 1, "qk_norm": True, "tie_embeddings": True}], ids=["", "options"])
def test_a_masked_window_has_the_loss_and_gradients_of_its_documents_apart(
    of: dict[str, Any], attend: Callable[..., Tensor], dtype: torch.dtype, rtol: float, atol: float
) -> None:
    inputs, targets = batch()
    masked, plain = make_loss(dtype, attend, **of), make_loss(dtype, attend, **of).model
    found, expected = masked(inputs, targets), apart(plain, inputs, targets)
    for loss in (found, expected):
        (loss / targets.numel()).backward()
    assert found.item() == pytest.approx(expected.item(), rel=rtol)
    for (name, value), (_, reference) in zip(masked.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(value.grad, reference.grad, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    unmasked = ChunkedLoss(plain, chunk_rows=7)(inputs, targets)
    assert abs(unmasked.item() - found.item()) > 1e-2, "a mask that does nothing would be no test"


def test_positions_counted_by_document_change_nothing_but_the_last_digits() -> None:
    """With them the two are the same sums of float64; what differs above is the rounding of the tables."""
    inputs, _ = batch()
    model = make_loss(torch.float64).model
    numbers = document_numbers(inputs, END)
    first = (numbers.unsqueeze(-1) == numbers.unsqueeze(-2)).int().argmax(-1)
    positions = torch.arange(24) - first
    with torch.no_grad():
        features = model.hidden_states(inputs, positions, mask=document_mask(inputs, END))
        for row, ids in enumerate(inputs.tolist()):
            for document in documents_of(ids):
                alone = model.hidden_states(inputs[row : row + 1, document])[0]
                torch.testing.assert_close(features[row, document], alone, rtol=0, atol=1e-12)


def test_a_window_of_one_document_is_as_without_a_mask() -> None:
    ids = torch.randint(1, 12, (2, 25), generator=torch.Generator().manual_seed(2))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    masked = make_loss(torch.float64)
    plain = ChunkedLoss(copy.deepcopy(masked.model), chunk_rows=7)
    assert masked(inputs, targets).item() == pytest.approx(plain(inputs, targets).item(), rel=1e-12)


def test_checkpointed_activations_give_the_same_bits() -> None:
    gradients = []
    for checkpointing in (False, True):
        loss = make_loss(torch.float32, checkpointing=checkpointing)
        value = loss(*batch())
        value.backward()
        gradients.append([value.detach(), *(p.grad for p in loss.model.parameters())])
    assert all(map(torch.equal, *gradients))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("form", ["plain", "blocks"])
def test_blocks_are_traced_once_for_the_masks_of_all_batches(form: str) -> None:
    """As in a compiled run with checkpointed activations, but run as traced, without PyTorch's C++ or Triton."""
    shape = {"vocab_size": 12, "context_length": 256, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_ff": 32}
    expected, found = (build_model(ModelHparams(**shape), seed=0) for _ in range(2))
    make, attend = (block_mask, attend_in_blocks) if form == "blocks" else (document_mask, fused_attention)
    torch._dynamo.reset()
    for block in blocks_of(found):
        block.attn.attend = attend
        traced = torch.compile(block.forward, dynamic=False, fullgraph=True, backend="aot_eager")
        block.forward = functools.partial(checkpoint, traced, use_reentrant=False)
    losses = [
        ChunkedLoss(model, chunk_rows=100, make_mask=functools.partial(mask, end_of_text_id=END))
        for model, mask in ((expected, document_mask), (found, make))
    ]
    for number, ends in enumerate(([[3, 50, 140], []], [[1], [200, 255]], [[], []])):
        ids = long_rows(256, ends)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            values = [loss(ids, ids.roll(-1)) for loss in losses]
            for value in values:
                value.backward()
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=0)
    torch._dynamo.reset()
    for (name, value), (_, reference) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(value.grad, reference.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
