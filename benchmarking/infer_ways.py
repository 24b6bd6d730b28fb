"""The decoders that `transformerlm-bench-infer` measures: our engine and transformers' `generate`.

Each takes prompts and returns a clock: its start, then the moment at which each new token of all rows was known. The
peer has the same weights (Llama's with its own layout of the rotary pairs), draws with the same temperature and top-p,
and is timed from inside its loop, by a stopping criterion that never stops.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from config.bench_infer import BenchInferSection
from profiling import nvtx
from transformerlm.hparams import SamplingHparams
from transformerlm.utils.errors import MissingDependencyError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transformerlm.hparams import ModelHparams
    from transformerlm.inference import Engine
    from transformerlm.models import TransformerLM

Decode = Callable[["Tensor"], list[float]]
"""Continues prompts (B, T); returns the clock."""


class Way(NamedTuple):
    """A way to decode, and how many bytes of weights it reads for each step."""

    name: str
    decode: Decode
    weight_bytes: int


def our_ways(model: "TransformerLM", settings: BenchInferSection, batch_size: int) -> list[Way]:
    """Return the engine's ways for batches of this size; what is compiled is compiled here."""
    from transformerlm.inference import Engine

    floats = weight_bytes(model)
    kinds = [("engine", False, False)]
    if settings.compiled:
        kinds += [("engine, compiled", True, False), ("engine, compiled, int8", True, True)]
        if model.token_embeddings.weight.device.type == "cpu":
            kinds.append(("engine, int8", False, True))
    ways = []
    for name, compiled, int8 in kinds:
        engine = Engine(model, max_batch_size=batch_size, compiled=compiled, int8=int8)
        read = floats // model.token_embeddings.weight.element_size() if int8 else floats
        ways.append(Way(name, _decode_by(engine, settings), read))
    return ways


def weight_bytes(model: "TransformerLM") -> int:
    """Return the bytes of all weight matrices, which each decode step has to read."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    return sum(matrix.nbytes for matrix in (*matrices, model.output_weight))


def _decode_by(engine: "Engine", settings: BenchInferSection) -> Decode:
    sampling = SamplingHparams(
        max_new_tokens=settings.new_tokens, temperature=settings.temperature, top_p=settings.top_p
    )

    def decode(prompts_BT: "Tensor") -> list[float]:
        for row, prompt in enumerate(prompts_BT.tolist()):
            engine.submit(prompt, sampling.model_copy(update={"seed": settings.seed + row}))
        synchronize(prompts_BT.device)
        clock = [time.perf_counter()]
        with nvtx.range("prefill"):
            engine.step()
            clock.append(time.perf_counter())
        with nvtx.range("decode"):
            while engine.has_work:
                engine.step()
                clock.append(time.perf_counter())
        return clock

    return decode


def peer_ways(model: "TransformerLM", settings: BenchInferSection) -> list[Way]:
    """Return `generate` of transformers' Llama with the weights of `model`, in two types and with two caches.

    Raises `MissingDependencyError` without transformers.
    """
    import torch

    ways = []
    for dtype in (torch.float32, torch.bfloat16):
        peer = llama_of(model).to(model.token_embeddings.weight.device, dtype)
        read = weight_bytes(model) // model.token_embeddings.weight.element_size() * dtype.itemsize
        for cache in ("dynamic", "static"):
            name = f"transformers, {str(dtype).removeprefix('torch.')}, {cache} cache"
            ways.append(Way(name, _generate_by(peer, cache, settings), read))
    return ways


def _generate_by(peer: "torch.nn.Module", cache: str, settings: BenchInferSection) -> Decode:
    import torch

    def decode(prompts_BT: "Tensor") -> list[float]:
        clock: list[float] = []

        def look_at_the_clock(ids: "Tensor", _scores: object, **_: object) -> "Tensor":
            synchronize(ids.device)
            clock.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        torch.manual_seed(settings.seed)
        synchronize(prompts_BT.device)
        clock.append(time.perf_counter())
        peer.generate(  # type: ignore[operator]
            prompts_BT, attention_mask=torch.ones_like(prompts_BT), max_new_tokens=settings.new_tokens, top_k=0,
            do_sample=settings.temperature > 0, temperature=settings.temperature or None, top_p=settings.top_p,
            cache_implementation=cache, stopping_criteria=[look_at_the_clock],
        )  # fmt: skip
        return clock

    return decode


def llama_of(model: "TransformerLM") -> "torch.nn.Module":
    """Return transformers' Llama with the weights of `model`, so that its logits are the same."""
    import torch

    from transformerlm.interop.layout import to_huggingface

    if model.settings.qk_norm:
        raise MissingDependencyError("benchmark.peers: Llama has no qk_norm; set model.qk_norm or the peers to false")
    peer = new_llama(model.settings).eval()
    d_head = peer.config.head_dim
    state = dict(to_huggingface(name, value, d_head) for name, value in model.state_dict().items())
    if model.lm_head is None:
        state["lm_head.weight"] = model.output_weight
    # With attention_bias Llama also has a bias on the output projection.
    zeros = {name: torch.zeros_like(value) for name, value in peer.state_dict().items() if "o_proj.bias" in name}
    peer.load_state_dict(zeros | state)
    return peer


def new_llama(shape: "ModelHparams") -> Any:
    """Return a `LlamaForCausalLM` with this shape and random weights.

    Raises `MissingDependencyError` without transformers.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise MissingDependencyError("benchmark.peers needs transformers: uv sync --extra bench") from error
    assert shape.vocab_size is not None
    scaling = {
        "factor": shape.rope_factor, "low_freq_factor": shape.rope_low_freq_factor,
        "high_freq_factor": shape.rope_high_freq_factor,
        "original_max_position_embeddings": shape.rope_original_context,
    }  # fmt: skip
    given = {name: value for name, value in scaling.items() if value is not None}
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_size, attention_bias=shape.qkv_bias,
        max_position_embeddings=shape.context_length, rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_embeddings, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        rope_parameters={"rope_type": shape.rope_scaling or "default", "rope_theta": shape.rope_theta, **given},
    )  # fmt: skip
    return LlamaForCausalLM(config)


def synchronize(device: "torch.device") -> None:
    """Wait until the device has done what was asked of it; the CPU is always done."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def read_bandwidth(device: "torch.device") -> float:
    """Return the memory bandwidth in bytes per second: the median of summing a gigabyte, more than caches hold."""
    import statistics

    import torch

    numbers = torch.ones(1 << 28, device=device)
    times = []
    for _ in range(7):
        synchronize(device)
        start = time.perf_counter()
        numbers.sum().item()
        times.append(time.perf_counter() - start)
    return numbers.nbytes / statistics.median(times)
