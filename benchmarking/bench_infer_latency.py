"""`transformerlm-bench-infer`: the latency of prefill and of each decode step.

Three things are measured for every batch size, in turn within each repeat, so that a busy moment of the machine affects
all of them:

- prefill: the prompt through the model into a fresh key-value cache, up to the first sampled token;
- decode: each further token, sampling and the transfer to the host included;
- uncached: `generate`, which runs the whole sequence again for every token, on the first few tokens.

The first two are timed on the engine, the code that serves users, step by step: as it is; with `compiled` also with
compiled steps, and those with int8 weights; with `peers` beside transformers' `generate` on the same weights
(`infer_ways`). The weights come from a checkpoint or are random, with the shape in [model].

stdout gets one line of JSON with flat keys: `benchmark`, `date`, `machine.*`, `torch.*`, `model.*`, `setting.*`,
`bytes_per_second` (of reading memory), with `valid` the model's `bits_per_byte.*`, and `results`, a list of one record
for each batch size and way:

    batch_size, way
    prefill.ms.{median,min,max}       of the repeats
    prefill.tokens_per_second         prompt tokens of all rows, by the median
    decode.ms.{median,min,max}        of the repeats' mean step
    decode.step_ms.{p50,p90,p99}      of all steps of all repeats
    decode.tokens_per_second          new tokens of all rows, by the median
    decode.floor_ms                   the time to read the step's weights from memory
    decode.floor_share                the floor divided by the median: how close a step is to the limit set by memory
    peak_memory_mb                    of prefill and decode: allocated on CUDA; else resident, of the process so far

and, for the engine as it is:

    uncached.ms.{median,min,max}      of the repeats' mean token
    uncached.tokens_per_second        new tokens of all rows, by the median
    cache_speedup                     uncached over cached time for the same tokens, medians

With `uncached_tokens = 0` the uncached keys and the speed-up are left out. Under `TRANSFORMERLM_NVTX=1` the
phases, and by level the model's modules, are ranges on a CUDA profiler's timeline.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from benchmarking.infer_loss import bits_per_byte
from benchmarking.infer_ways import Way, our_ways, peer_ways, read_bandwidth, synchronize
from benchmarking.runner import describe_run, percentiles, print_summary, print_table, spread
from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, run_command
from config.bench_infer import BenchInferConfig, BenchInferSection
from profiling import attach_nvtx, memory, nvtx
from transformerlm.utils.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from transformerlm.models import TransformerLM

EPILOG = "example: transformerlm-bench-infer --config config/resources/bench_infer.toml --checkpoint runs/stories"

Record = dict[str, Any]


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
    head = describe_run("infer", settings, {}, exclude={"batch_sizes", "device", "dtype", "threads"}) | _describe(model)
    say(f"{head['model.parameters']:,} parameters, {head['torch.dtype']}, on {head['torch.device']}")
    head["bytes_per_second"] = read_bandwidth(model.token_embeddings.weight.device)
    if settings.valid is not None:
        head |= bits_per_byte(model, settings.valid)
    with progress_bar("measuring") as update, attach_nvtx(model):
        results = measure(model, settings, update)
    for record in results:
        record["decode.floor_ms"] = 1e3 * record.pop("weight_bytes") / head["bytes_per_second"]
        record["decode.floor_share"] = record["decode.floor_ms"] / record["decode.ms.median"]
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
    """Time each batch size and return its records; `update` is called with the progress."""
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    device = model.token_embeddings.weight.device
    peers = peer_ways(model, settings) if settings.peers else []
    runs = settings.warmup + settings.repeats
    results: list[Record] = []
    for number, batch_size in enumerate(settings.batch_sizes):
        prompts_BT = torch.randint(model.vocab_size, (batch_size, settings.prompt_tokens), generator=generator)
        ways = [*our_ways(model, settings, batch_size), *peers]
        repeats: list[list[Repeat]] = [[] for _ in ways]
        for run in range(runs):
            for way, of_way in zip(ways, repeats, strict=True):
                of_way.append(_repeat(way, model if way is ways[0] else None, settings, prompts_BT.to(device)))
            update((number + (run + 1) / runs) / len(settings.batch_sizes), f"batch {batch_size}")
        for way, of_way in zip(ways, repeats, strict=True):
            record = summarise(of_way[settings.warmup :], settings, batch_size)
            results.append({"way": way.name, "weight_bytes": way.weight_bytes, **record})
    return results


def _repeat(
    way: Way, uncached: "TransformerLM | None", settings: BenchInferSection, prompts_BT: "torch.Tensor"
) -> Repeat:
    """Time one way; `uncached` is the model to time without a cache too."""
    from transformerlm.utils.devices import peak_memory_bytes

    memory.reset_peaks()
    clock = way.decode(prompts_BT)
    assert len(clock) == settings.new_tokens + 1, (way.name, len(clock))
    prefill, *steps = (end - start for start, end in pairwise(clock))
    peak_bytes = peak_memory_bytes(prompts_BT.device)  # here, since `generate` holds the logits of all positions
    return Repeat(
        prefill, steps, _time_uncached(uncached, settings, prompts_BT) if uncached is not None else 0.0, peak_bytes
    )


def _time_uncached(model: "TransformerLM", settings: BenchInferSection, prompts_BT: "torch.Tensor") -> float:
    """Return the seconds that `generate` takes for the first `uncached_tokens`; 0 if there are none."""
    import torch

    from transformerlm.inference import generate

    if not settings.uncached_tokens:
        return 0.0
    device = prompts_BT.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    synchronize(device)
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
        synchronize(device)
    return time.perf_counter() - start


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
    if tokens and repeats[0].uncached:
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


def _print_results(results: Sequence[Record]) -> None:
    rows = [
        _row(record, phase)
        for record in results
        for phase in ("prefill", "decode", "uncached")
        if f"{phase}.ms.median" in record
    ]
    columns = ["", "median", "min", "max", "p50", "p90", "p99", "tokens/s", "floor"]
    print_table("milliseconds of a prefill, of a decode step, of an uncached token", columns, rows)
    for record in results:
        if "cache_speedup" in record:
            say(f"batch {record['batch_size']}: the cache is {record['cache_speedup']:.1f} times as fast as none")


def _row(record: Record, phase: str) -> list[str]:
    keys = [f"{phase}.ms.{name}" for name in ("median", "min", "max")]
    keys += [f"{phase}.step_ms.{name}" for name in ("p50", "p90", "p99")]
    return [
        f"batch {record['batch_size']}, {record['way']}, {phase}",
        *(f"{record[key]:,.2f}" if key in record else "" for key in keys),
        f"{record[f'{phase}.tokens_per_second']:,.0f}",
        f"{record['decode.floor_share']:.0%}" if phase == "decode" else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
