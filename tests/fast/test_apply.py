"""What is done to blocks: the same numbers with less memory, and the attention function of the device."""

import pytest
import torch

from transformerlm.fast.apply import blocks_of, choose_attention, make_fast
from transformerlm.fast.attention import fused_attention
from transformerlm.fast.chunked_loss import ChunkedLoss
from transformerlm.hparams import TrainingHparams
from transformerlm.models import TransformerLM
from transformerlm.models.attention import grouped_attention
from transformerlm.training.optim import adamw_update

CPU = torch.device("cpu")


def loss_of(dtype: torch.dtype, *, activation_checkpointing: bool) -> ChunkedLoss:
    torch.manual_seed(0)
    model = TransformerLM(40, 8, 32, 3, 2, 64)
    training = TrainingHparams(activation_checkpointing=activation_checkpointing, loss_chunk_rows=16)
    return make_fast(model, adamw_update, training=training, device=CPU, dtype=dtype, compiled=False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_gives_the_same_bits_and_keeps_the_inputs_of_blocks_only(dtype: torch.dtype) -> None:
    inputs, targets = torch.randint(0, 40, (2, 3, 8), generator=torch.Generator().manual_seed(1))
    gradients, kept = [], []
    for checkpointing in (False, True):
        loss = loss_of(dtype, activation_checkpointing=checkpointing)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            value = loss(inputs, targets)
        value.backward()
        kept.append(sum(sizes))
        gradients.append([value.detach(), *(p.grad for p in loss.model.parameters())])
    assert all(map(torch.equal, *gradients))
    assert kept[1] < kept[0] / 2


def test_the_attention_function_is_chosen_by_device_type_and_compiler() -> None:
    cuda = torch.device("cuda")
    assert choose_attention(CPU, torch.bfloat16, compiled=True) is grouped_attention
    assert choose_attention(CPU, torch.bfloat16, compiled=False) is fused_attention
    assert choose_attention(CPU, torch.float32, compiled=True) is fused_attention
    assert choose_attention(cuda, torch.bfloat16, compiled=True) is fused_attention
    model = TransformerLM(40, 8, 32, 3, 2, 64)
    assert len(blocks_of(ChunkedLoss(model, chunk_rows=8))) == 3
