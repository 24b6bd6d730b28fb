"""The compiled step gives what the plain one gives, is compiled once, and rounds weights no more than it says."""

import pytest
import torch

from transformerlm.fast import compile as compiling
from transformerlm.fast.decoding import CompiledStep, FewRowsLinear, Int8Linear, for_few_rows, with_int8_weights
from transformerlm.hparams import SamplingHparams
from transformerlm.inference import Engine
from transformerlm.inference import engine as engine_module
from transformerlm.inference.engine import Request
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
    assert not any(isinstance(module, Linear) for module in copied.modules())
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    layer = Int8Linear(weight)
    assert layer.weight.dtype == torch.int8
    error = (layer.weight * layer.scale.unsqueeze(1) - weight).abs()
    assert (error <= weight.abs().amax(dim=1, keepdim=True) / 127 / 2 * 1.001).all()
    bias, x = torch.randn(5), torch.randn(2, 9, 64)
    assert torch.equal(Int8Linear(weight, bias)(x), layer(x) + bias)


@pytest.mark.parametrize("in_features", [1, 36, 64, 100])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_int8_products_in_eager_mode_are_those_of_rounded_weights(in_features: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(7, in_features, generator=generator), torch.randn(rows, 2, in_features, generator=generator)
    found, expected = Int8Linear(weight)(x), x @ rounded(weight).T
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2**-7 * (x.abs() @ weight.abs().T).max()  # two roundings to bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_an_eager_engine_with_int8_weights_follows_the_rounded_model(tied: bool) -> None:
    model = build(dtype=torch.float32, tied=tied)
    engine = Engine(model, max_batch_size=2, int8=True)
    sampling = SamplingHparams(temperature=0, max_new_tokens=CONTEXT)
    requests = [engine.submit(prompt, sampling, num_logprobs=VOCAB) for prompt in ([3, 1, 2], [5])]
    found: dict[Request, list[torch.Tensor]] = {request: [] for request in requests}
    for token in engine.run():
        assert token.logprobs is not None
        likeliest = dict(token.logprobs.likeliest)
        found[token.request].append(torch.tensor([likeliest[token_id] for token_id in range(VOCAB)]))
    exact = build(dtype=torch.float32, tied=tied)
    for request, rows in found.items():
        ids = [*request.prompt_ids, *request.token_ids]
        with torch.no_grad():
            expected = exact(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[len(request.prompt_ids) - 1 :]
        torch.testing.assert_close(torch.stack(rows), expected, atol=0.1, rtol=0)
        torch.testing.assert_close(rows[0], expected[0])  # a prompt goes through the model itself
        assert not torch.allclose(rows[1], expected[1], atol=1e-5), "the weights were not rounded"


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "out_features"), [(1, 8), (3, 7), (32, 12), (33, 8)])
def test_a_product_for_each_thread_is_the_product(rows: int, out_features: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Linear(5, out_features, dtype=torch.float64, bias=with_bias)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(rows, 1, 5, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(FewRowsLinear(layer.weight, layer.bias)(x), layer(x))


@pytest.mark.parametrize("tied", [False, True])
def test_an_eager_engine_for_few_rows_shares_the_weights_and_decodes_the_same(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tied=tied)
    found = []
    for is_slow in (False, True):
        monkeypatch.setattr(engine_module, "eager_is_slow_for_few_rows", lambda _, is_slow=is_slow: is_slow)
        engine = Engine(model, max_batch_size=3)
        assert (engine._stepping_model is not model) == is_slow
        found.append(decode(engine))
    assert found[0] == found[1]
    copied = for_few_rows(model)
    assert not any(isinstance(module, Linear) for module in copied.modules())
    assert {*map(id, copied.parameters())} == {*map(id, model.parameters())}


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int8 weights on meta are for compiled steps only"):
        Engine(build().to("meta"), int8=True)
    monkeypatch.setattr(compiling, "_missing_compiler", lambda _device: "there is no C++ compiler here")
    with pytest.raises(ConfigError, match="compile: is true, but there is no C\\+\\+ compiler here"):
        Engine(build(), compiled=True)
