"""The compiled step gives what the plain one gives, is compiled once, and rounds weights no more than it says."""

import pytest
import torch

from transformerlm.distributed import compiling
from transformerlm.distributed.decoding import CompiledStep, Int8Linear, with_int8_weights
from transformerlm.hparams import SamplingHparams
from transformerlm.inference import Engine
from transformerlm.models import Linear, TransformerLM
from transformerlm.utils.errors import ConfigError

VOCAB, CONTEXT = 40, 16


def build(*, dtype: torch.dtype = torch.float64, tied: bool = False) -> TransformerLM:
    model = TransformerLM(
        VOCAB, CONTEXT, 32, 2, 4, 64, dtype=dtype, num_kv_heads=2, qkv_bias=True, head_size=6, tie_embeddings=tied
    )
    draw = torch.Generator().manual_seed(0)
    model.init_weights(draw)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=draw)
    return model.eval()


def rounded(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round() * scale


def decode(engine: Engine) -> list[list[int]]:
    """Decode five requests of different lengths and settings, one of which comes late."""
    ways = [SamplingHparams(temperature=row % 2 * 1.1, max_new_tokens=3 + row, seed=row) for row in range(5)]
    requests = [engine.submit([1 + row] * (1 + 2 * row), way) for row, way in enumerate(ways[:4])]
    engine.step()
    requests.append(engine.submit([7, 8], ways[4]))
    list(engine.run())
    return [request.token_ids for request in requests]


@pytest.mark.slow
def test_requests_get_the_same_from_a_compiled_engine_which_compiles_nothing_later() -> None:
    model = build()
    engine = Engine(model, max_batch_size=3, compiled=True)
    assert engine._compiled_step is not None
    assert [engine._compiled_step.batch_size(rows) for rows in (1, 2, 3)] == [1, 3, 3]
    with torch.compiler.set_stance("fail_on_recompile"):
        found = decode(engine)
    assert found == decode(Engine(model, max_batch_size=3))


@pytest.mark.slow
def test_another_model_of_the_same_shapes_has_steps_of_its_own() -> None:
    models = [TransformerLM(VOCAB, CONTEXT, 32, 1, heads, 64, dtype=torch.float64).eval() for heads in (2, 4)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(0))
    ids, first = torch.tensor([3]), torch.tensor([0])
    steps = [CompiledStep(model, model.new_cache(1), batch_sizes=[1]) for model in models]
    for _ in range(2):
        for step, model in zip(steps, models, strict=True):
            step(ids, first, 2)
            found = step(ids + 1, first + 1, 2)
            with torch.no_grad():
                torch.testing.assert_close(found, model(torch.tensor([[3, 4]]))[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "rows"), [(False, 1), (True, 10)])
def test_int8_logits_are_those_of_rounded_weights(tied: bool, rows: int) -> None:
    model = build(dtype=torch.float32, tied=tied)
    expected = build(dtype=torch.float32, tied=tied)
    for module in expected.modules():
        if isinstance(module, Linear):
            module.weight.data = rounded(module.weight.data)
    if tied:
        expected.lm_head = Linear(32, VOCAB)  # type: ignore[assignment]
        expected.lm_head.weight.data = rounded(model.token_embeddings.weight.data)
    step = CompiledStep(model, model.new_cache(rows), batch_sizes=[rows], int8=True)
    ids = torch.randint(VOCAB, (rows, CONTEXT), generator=torch.Generator().manual_seed(1))
    with torch.compiler.set_stance("fail_on_recompile"):
        for position in range(CONTEXT):
            found = step(ids[:, position], torch.full((rows,), position), position + 1)
    with torch.no_grad():
        torch.testing.assert_close(found, expected(ids)[:, -1], atol=1e-4, rtol=1e-4)


def test_int8_weights_are_within_half_a_step_and_the_model_stays() -> None:
    model = build(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = with_int8_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert copied.token_embeddings.weight is model.token_embeddings.weight
    assert sum(isinstance(module, Int8Linear) for module in copied.modules()) == 2 * 7 + 1
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    layer = Int8Linear(weight)
    assert layer.weight.dtype == torch.int8
    error = (layer.weight * layer.scale.unsqueeze(1) - weight).abs()
    assert (error <= weight.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.001).all()
    x = torch.randn(2, 9, 64)
    torch.testing.assert_close(layer(x), x @ (layer.weight * layer.scale.unsqueeze(1)).T)
    bias = torch.nn.Parameter(torch.randn(5))
    assert torch.equal(Int8Linear(weight, bias)(x), layer(x) + bias)
    assert copied.layers[0].attn.q_proj.bias is model.layers[0].attn.q_proj.bias


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int8 weights are for compiled steps only"):
        Engine(build(), int8=True)
    monkeypatch.setattr(compiling, "_missing_compiler", lambda _device: "there is no C++ compiler here")
    with pytest.raises(ConfigError, match="compile: is true, but there is no C\\+\\+ compiler here"):
        Engine(build(), compiled=True)
