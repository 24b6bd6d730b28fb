"""`transformerlm-bench-infer`: how long a model takes to read a prompt, and to write each token after it.

Three things are measured apart, for every batch size, in turn within each repeat so that a busy moment of the
machine meets all of them:

- prefill: the prompt through the model into a fresh key-value cache, up to the first new token in hand;
- decode: each further token by itself, sampling and the transfer to the host included;
- uncached: `generate`, which runs the whole sequence again for every token, on the first few tokens.

The first two are timed on the engine, the code that serves users, step by step. The weights are those
of a checkpoint or random ones of the shape in [model]: speed does not depend on their values.

stdout gets one line of JSON with flat keys: `benchmark`, `date`, `machine.*`, `torch.*`, `model.*`, `setting.*`,
and `results`, a list of one record a batch size:

    batch_size
    prefill.ms.{median,min,max}       of the repeats
    prefill.tokens_per_second         prompt tokens of all rows, by the median
    decode.ms.{median,min,max}        of the repeats' mean step
    decode.step_ms.{p50,p90,p99}      of all steps of all repeats
    decode.tokens_per_second          new tokens of all rows, by the median
    uncached.ms.{median,min,max}      of the repeats' mean token
    uncached.tokens_per_second        new tokens of all rows, by the median
    cache_speedup                     uncached over cached time for the same tokens, medians
    peak_memory_mb                    of prefill and decode: allocated on CUDA; else resident, of the process so far

With `uncached_tokens = 0` the uncached keys and the speed-up are left out. Under `TRANSFORMERLM_NVTX=1` the
phases, and by level the model's modules, are ranges on a CUDA profiler's timeline.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from benchmarking.report import machine, print_summary, print_table
from benchmarking.timing import percentiles, spread
from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, run_command
from config.bench_infer import BenchInferConfig, BenchInferSection
from profiling import attach_nvtx, memory, nvtx
from transformerlm.hparams import SamplingHparams
from transformerlm.utils.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from transformerlm.models import TransformerLM

EPILOG = "example: transformerlm-bench-infer --config config/resources/bench_infer.toml --checkpoint runs/stories"

Record = dict[str, float]


@dataclass(frozen=True)
class Repeat:
    """Seconds of the prefill, of each decode step, of the uncached tokens together (0: none); the peak in bytes."""

    prefill: float
    steps: list[float]
    uncached: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(
        BenchInferConfig,
        lambda invocation: bench_infer(invocation.config),
        prog="transformerlm-bench-infer",
        epilog=EPILOG,
        argv=argv,
    )


def bench_infer(config: BenchInferConfig) -> int:
    """Measure what `config` describes and report it; return the exit code."""
    from transformerlm.utils.devices import set_threads

    settings = config.benchmark
    set_threads(settings.threads)
    model = load_model(config)
    head = {"benchmark": "infer", **machine(), **_describe(model), **_settings(settings)}
    say(f"{head['model.parameters']:,} parameters, {head['torch.dtype']}, on {head['torch.device']}")
    with progress_bar("measuring") as update, attach_nvtx(model):
        results = measure(model, settings, update)
    _print_results(results)
    print_summary({**head, "results": results})
    return EXIT_OK


def load_model(config: BenchInferConfig) -> "TransformerLM":
    """Return the model to measure, on its device and in evaluation mode.

    Raises `ConfigError` if prompt and new tokens do not fit into the context of the checkpoint's model.
    """
    from transformerlm.inference.predictor import Predictor
    from transformerlm.models.build import build_model
    from transformerlm.utils.devices import select_device, select_dtype

    settings = config.benchmark
    if settings.checkpoint is None:
        device = select_device(settings.device)
        dtype = select_dtype(settings.dtype, device)
        model = build_model(config.model, device=device, dtype=dtype, seed=settings.seed)
        return model.eval()
    model = Predictor.from_checkpoint(settings.checkpoint, device=settings.device, dtype=settings.dtype).model
    total = settings.prompt_tokens + settings.new_tokens
    if total > model.context_length:
        raise ConfigError(
            f"{settings.checkpoint}: its model has a context of {model.context_length} tokens, in which "
            f"prompt_tokens + new_tokens = {total} do not fit; lower benchmark.prompt_tokens or benchmark.new_tokens"
        )
    return model


def measure(model: "TransformerLM", settings: BenchInferSection, update: Update) -> list[Record]:
    """Time each batch size and return its record; `update` is told how far it is."""
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    runs = settings.warmup + settings.repeats
    results: list[Record] = []
    for number, batch_size in enumerate(settings.batch_sizes):
        shape_BT = (batch_size, settings.prompt_tokens)
        prompts_BT = torch.randint(model.vocab_size, shape_BT, generator=generator)
        repeats: list[Repeat] = []
        for run in range(runs):
            repeats.append(_repeat(model, settings, prompts_BT.to(model.token_embeddings.weight.device)))
            update((number + (run + 1) / runs) / len(settings.batch_sizes), f"batch {batch_size}")
        results.append(summarise(repeats[settings.warmup :], settings, batch_size))
    return results


def _repeat(model: "TransformerLM", settings: BenchInferSection, prompts_BT: "torch.Tensor") -> Repeat:
    from transformerlm.utils.devices import peak_memory_bytes

    memory.reset_peaks()
    prefill, *steps = _time_cached(model, settings, prompts_BT)
    peak_bytes = peak_memory_bytes(prompts_BT.device)  # here, since `generate` holds the logits of all positions
    return Repeat(prefill, steps, _time_uncached(model, settings, prompts_BT), peak_bytes)


def _time_cached(model: "TransformerLM", settings: BenchInferSection, prompts_BT: "torch.Tensor") -> list[float]:
    """Return the seconds that each step of the engine took, which gives each row a token; the first is the prefill.

    Every step ends with its tokens on the host, so that the device has done its work when the clock is read.
    """
    from transformerlm.inference import Engine

    sampling = SamplingHparams(
        max_new_tokens=settings.new_tokens, temperature=settings.temperature, top_p=settings.top_p
    )
    engine = Engine(model, max_batch_size=len(prompts_BT))
    for row, prompt in enumerate(prompts_BT.tolist()):
        engine.submit(prompt, sampling.model_copy(update={"seed": settings.seed + row}))
    _synchronize(prompts_BT.device)
    clock = [time.perf_counter()]
    with nvtx.range("prefill"):
        engine.step()
        clock.append(time.perf_counter())
    with nvtx.range("decode"):
        while engine.has_work:
            engine.step()
            clock.append(time.perf_counter())
    assert len(clock) == settings.new_tokens + 1, len(clock)
    return [end - start for start, end in pairwise(clock)]


def _time_uncached(model: "TransformerLM", settings: BenchInferSection, prompts_BT: "torch.Tensor") -> float:
    """Return the seconds that `generate` takes for the first `uncached_tokens`; 0 if there are none."""
    import torch

    from transformerlm.inference import generate

    if not settings.uncached_tokens:
        return 0.0
    device = prompts_BT.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    _synchronize(device)
    start = time.perf_counter()
    with nvtx.range("uncached"):
        generate(
            model,
            prompts_BT,
            settings.uncached_tokens,
            settings.temperature,
            settings.top_p,
            generator=generator,
        )
        _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: "torch.device") -> None:
    """Wait until the device has done what was asked of it; the CPU is always done."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def summarise(repeats: Sequence[Repeat], settings: BenchInferSection, batch_size: int) -> Record:
    """Return the record of one batch size; keys as in the module's docstring."""
    prefill = spread("prefill.ms", [1e3 * repeat.prefill for repeat in repeats])
    decode = spread("decode.ms", [1e3 * statistics.fmean(repeat.steps) for repeat in repeats])
    record: Record = {
        "batch_size": batch_size,
        **prefill,
        "prefill.tokens_per_second": 1e3 * batch_size * settings.prompt_tokens / prefill["prefill.ms.median"],
        **decode,
        **percentiles("decode.step_ms", [1e3 * step for repeat in repeats for step in repeat.steps]),
        "decode.tokens_per_second": 1e3 * batch_size / decode["decode.ms.median"],
        "peak_memory_mb": max(repeat.peak_bytes for repeat in repeats) / 1e6,
    }
    tokens = settings.uncached_tokens
    if tokens:
        uncached = spread("uncached.ms", [1e3 * repeat.uncached / tokens for repeat in repeats])
        cached_ms = statistics.median(1e3 * (repeat.prefill + sum(repeat.steps[: tokens - 1])) for repeat in repeats)
        record |= uncached
        record["uncached.tokens_per_second"] = 1e3 * batch_size / uncached["uncached.ms.median"]
        record["cache_speedup"] = uncached["uncached.ms.median"] * tokens / cached_ms
    return record


def _describe(model: "TransformerLM") -> dict[str, object]:
    """Return what is measured and on what: the `torch.*` and `model.*` entries of the summary."""
    import torch

    from transformerlm.models import num_parameters
    from transformerlm.utils.devices import fingerprint
    from transformerlm.utils.dtypes import dtype_name

    weight = model.token_embeddings.weight
    return {
        "torch.version": torch.__version__,
        "torch.device": fingerprint(weight.device)["device"],
        "torch.dtype": dtype_name(weight.dtype),
        "torch.threads": torch.get_num_threads(),
        "model.parameters": num_parameters(model),
        "model.weights_mb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6,
        "model.vocab_size": model.vocab_size,
        "model.context_length": model.context_length,
    }


def _settings(settings: BenchInferSection) -> dict[str, object]:
    values = settings.model_dump(mode="json", exclude={"batch_sizes", "device", "dtype", "threads"})
    return {f"setting.{key}": value for key, value in values.items()}


def _print_results(results: Sequence[Record]) -> None:
    rows = [
        _row(record, phase)
        for record in results
        for phase in ("prefill", "decode", "uncached")
        if f"{phase}.ms.median" in record
    ]
    columns = ["", "median", "min", "max", "p50", "p90", "p99", "tokens/s"]
    print_table("milliseconds of a prefill, of a decode step, of an uncached token", columns, rows)
    for record in results:
        if "cache_speedup" in record:
            say(f"batch {record['batch_size']}: the cache is {record['cache_speedup']:.1f} times as fast as none")


def _row(record: Record, phase: str) -> list[str]:
    keys = [f"{phase}.ms.{name}" for name in ("median", "min", "max")]
    keys += [f"{phase}.step_ms.{name}" for name in ("p50", "p90", "p99")]
    return [
        f"batch {record['batch_size']}, {phase}",
        *(f"{record[key]:,.2f}" if key in record else "" for key in keys),
        f"{record[f'{phase}.tokens_per_second']:,.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
