"""The language model: its names, its initialisation, causality, options and devices."""

import math

import pytest
import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import RotaryPositionalEmbedding, TransformerLM
from transformerlm.models.transformer import Block
from transformerlm.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model(**options) -> TransformerLM:
    sizes = {
        "vocab_size": 50,
        "context_length": 16,
        "d_model": 24,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 32,
    }
    return TransformerLM(**{**sizes, **options})


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, shape, generator=generator(seed))


OPTIONS = [
    {},
    {"num_kv_heads": 2},
    {"tie_embeddings": True},
    {"qk_norm": True},
    {"num_kv_heads": 1, "tie_embeddings": True, "qk_norm": True},
    {"num_kv_heads": 2, "qkv_bias": True, "head_size": 10, "rope_scaling": "linear", "rope_factor": 2.0},
]


def test_state_names_and_shapes_are_the_contract() -> None:
    block = {
        "attn.q_proj.weight": (24, 24),
        "attn.k_proj.weight": (12, 24),
        "attn.v_proj.weight": (12, 24),
        "attn.output_proj.weight": (24, 24),
        "attn.q_norm.weight": (6,),
        "attn.k_norm.weight": (6,),
        "ffn.w1.weight": (32, 24),
        "ffn.w2.weight": (24, 32),
        "ffn.w3.weight": (32, 24),
        "ln1.weight": (24,),
        "ln2.weight": (24,),
    }
    expected = {f"layers.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    expected |= {"token_embeddings.weight": (50, 24), "ln_final.weight": (24,), "lm_head.weight": (50, 24)}
    state = small_model(num_kv_heads=2, qk_norm=True).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_state_of_a_model_with_biases_and_a_head_size_of_its_own() -> None:
    state = small_model(num_kv_heads=2, qkv_bias=True, head_size=10).state_dict()
    plain = small_model(num_kv_heads=2).state_dict()
    attention = {
        "q_proj.weight": (40, 24), "k_proj.weight": (20, 24), "v_proj.weight": (20, 24), "output_proj.weight": (24, 40),
        "q_proj.bias": (40,), "k_proj.bias": (20,), "v_proj.bias": (20,),
    }  # fmt: skip
    for name, shape in attention.items():
        assert state[f"layers.1.attn.{name}"].shape == shape
    assert state.keys() - plain.keys() == {f"layers.{n}.attn.{p}_proj.bias" for n in range(2) for p in "qkv"}
    assert not state["layers.0.attn.k_proj.bias"].any()


def test_positional_arguments_are_the_contract() -> None:
    model = TransformerLM(50, 16, 24, 2, 4, 32, 500.0, "cpu", torch.float64)
    assert model.token_embeddings.weight.dtype == torch.float64
    assert model.rope.theta == 500.0
    assert model(random_ids(2, 5)).dtype == torch.float64


@pytest.mark.parametrize("options", OPTIONS)
def test_causality_by_gradient(options: dict) -> None:
    """The output at t has gradients with respect to the inputs up to t, and exactly none after."""
    model = small_model(**options)
    block, rotation = model.layers[0], model.rope.rows(8)
    x = torch.randn(1, 8, 24, generator=generator()).requires_grad_()
    for t in range(8):
        (gradient,) = torch.autograd.grad(block(x, rotation)[0, t].square().sum(), x)
        reach = gradient[0].abs().sum(dim=-1)
        assert (reach[: t + 1] > 0).all()
        assert (reach[t + 1 :] == 0).all()


def test_causality_of_the_whole_model() -> None:
    model = small_model()
    ids = random_ids(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 50
    torch.testing.assert_close(model(ids)[:, :7], model(changed)[:, :7])
    assert not torch.allclose(model(ids)[:, 7], model(changed)[:, 7])


def test_a_mask_says_who_attends_to_what() -> None:
    model, ids = small_model(), random_ids(2, 6)
    causal = torch.ones(6, 6).tril().bool()
    torch.testing.assert_close(model(ids, mask=causal), model(ids), atol=1e-5, rtol=1e-5)
    alone = model(ids, mask=torch.eye(6, dtype=torch.bool).expand(2, 1, 6, 6))
    torch.testing.assert_close(alone, model(ids.reshape(12, 1)).reshape(2, 6, -1), atol=1e-5, rtol=1e-5)
    with torch.no_grad(), pytest.raises(ConfigError, match="a mask cannot be given with a key-value cache"):
        model(ids, cache=model.new_cache(2), mask=causal)


def test_forward_is_the_head_on_the_hidden_states() -> None:
    ids = random_ids(2, 5)
    model = small_model()
    features = model.hidden_states(ids)
    assert features.shape == (2, 5, 24)
    assert model.lm_head is not None
    assert torch.equal(model(ids), model.lm_head(features))
    assert torch.equal(model(ids), model.logits(features))
    tied = small_model(tie_embeddings=True)
    expected = tied.hidden_states(ids) @ tied.token_embeddings.weight.T
    torch.testing.assert_close(tied(ids), expected)


def test_explicit_positions_equal_counting() -> None:
    model, ids = small_model(), random_ids(3, 6)
    torch.testing.assert_close(model(ids, torch.arange(6)), model(ids))
    torch.testing.assert_close(model(ids, torch.arange(6).expand(3, 6)), model(ids))


def test_there_is_one_pair_of_rotary_tables_and_no_masks_are_stored() -> None:
    model = small_model(num_layers=3)
    assert sum(1 for _ in model.buffers()) == 2
    names = [name for name, _ in model.named_parameters()]
    assert set(model.state_dict()) == set(names)


def test_initial_standard_deviations() -> None:
    model = TransformerLM(2000, 16, 128, 8, 4, 384)
    model.init_weights(generator())
    depth = 1 / math.sqrt(2 * 8)
    expected = {
        "token_embeddings": 1.0,
        "layers.3.attn.q_proj": math.sqrt(2 / 256),
        "layers.3.attn.output_proj": math.sqrt(2 / 256) * depth,
        "layers.3.ffn.w1": math.sqrt(2 / 512),
        "layers.3.ffn.w2": math.sqrt(2 / 512) * depth,
        "lm_head": math.sqrt(2 / 2128),
    }
    for name, std in expected.items():
        weight = model.get_parameter(f"{name}.weight")
        assert weight.std().item() == pytest.approx(std, rel=0.02), name
        assert weight.abs().max().item() <= 3 * std * (1 + 1e-6), name
    assert torch.equal(model.ln_final.weight, torch.ones(128))


def test_a_tied_model_starts_with_logits_of_order_one() -> None:
    model = TransformerLM(2000, 16, 128, 2, 4, 384, tie_embeddings=True)
    model.init_weights(generator())
    assert 0.5 < model(torch.randint(2000, (4, 16), generator=generator())).std().item() < 2


def test_initialisation_is_a_function_of_the_generator() -> None:
    first, second = small_model(qk_norm=True), small_model(qk_norm=True)
    first.init_weights(generator(7))
    state = torch.get_rng_state()
    second.init_weights(generator(7))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    second.init_weights(generator(8))
    assert not torch.equal(first.token_embeddings.weight, second.token_embeddings.weight)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_model_can_be_built_on_the_meta_device(options: dict) -> None:
    with torch.device("meta"):
        model = small_model(**options)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    model.init_weights(generator(7))
    reference = small_model(**options)
    reference.init_weights(generator(7))
    assert torch.equal(model(random_ids(2, 5)), reference(random_ids(2, 5)))


def test_bfloat16_weights_give_nearly_the_same_logits() -> None:
    model, ids = small_model(), random_ids(2, 16)
    logits = model(ids)
    narrow = model.to(torch.bfloat16)(ids)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - logits).std() < 0.03 * logits.std()


def test_autocast_keeps_the_stream_in_float32() -> None:
    model, ids = small_model(), random_ids(2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.hidden_states(ids)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, model.hidden_states(ids), atol=0.1, rtol=0.1)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="17 positions asked for, but the model has 16"):
        small_model()(random_ids(1, 17))


@pytest.mark.parametrize("name", ["vocab_size", "context_length", "d_model", "num_layers", "num_heads", "d_ff"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} should be greater than 0"):
        small_model(**{name: 0})


def test_a_block_stands_alone() -> None:
    block = Block(ModelHparams(d_model=16, num_heads=2, d_ff=32))
    rotation = RotaryPositionalEmbedding(10000.0, 8, 8).rows(8)
    assert block(torch.randn(2, 8, 16), rotation).shape == (2, 8, 16)
