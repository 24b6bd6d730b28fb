"""The model against transformers' of the families that it can be: logits, and gradients of the new parameters."""

from typing import Any

import pytest
import torch

from transformerlm.interop.layout import from_huggingface
from transformerlm.models import TransformerLM

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")

VOCAB, CONTEXT = 60, 48
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILIES = {
    "llama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}, {"rope_theta": 300.0}),
    "llama3": (
        "Llama",
        {"rope_parameters": LLAMA3},
        {
            "rope_theta": 500.0, "rope_scaling": "llama3", "rope_factor": 4.0, "rope_low_freq_factor": 1.0,
            "rope_high_freq_factor": 4.0, "rope_original_context": 16,
        },
    ),
    "linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0}},
        {"rope_scaling": "linear", "rope_factor": 3.0},
    ),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}, {"qkv_bias": True}),
    "qwen3": (
        "Qwen3",
        {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        {"qk_norm": True, "head_size": 12},
    ),
}  # fmt: skip


def pair(family: str) -> tuple[torch.nn.Module, TransformerLM]:
    """Return transformers' model with random weights, and ours with the same."""
    name, theirs, ours = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **theirs)
    peer = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in peer.parameters():  # gains and biases too: as they begin, they would not be missed
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    model = TransformerLM(VOCAB, CONTEXT, 32, 2, 4, 48, num_kv_heads=2, norm_eps=1e-5, **ours)
    d_head = ours.get("head_size", 8)
    model.load_state_dict(dict(from_huggingface(name, weight, d_head) for name, weight in peer.state_dict().items()))
    return peer, model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str) -> None:
    peer, model = pair(family)
    ids = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids)
        assert logits.std() > 0.1
        torch.testing.assert_close(logits, peer(ids).logits, atol=1e-5, rtol=1e-5)


def test_gradients_of_biases_are_those_of_transformers() -> None:
    peer, model = pair("qwen2")
    ids = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    model(ids).square().mean().backward()
    peer(ids).logits.square().mean().backward()
    for name, parameter in peer.named_parameters():
        assert parameter.grad is not None
        ours, gradient = from_huggingface(name, parameter.grad, 8)
        torch.testing.assert_close(model.get_parameter(ours).grad, gradient, atol=1e-5, rtol=1e-4, msg=name)
