"""`transformerlm-bench-train`: tokens per second of the whole training step, compared with a GPT-2-style baseline.

The baseline is transformers' Llama with the same dimensions, trained as its users train it: under bfloat16 autocast,
compiled, with torch's fused AdamW. It is also measured without autocast and without compilation, since the fastest
combination depends on the processor. Each measurement is taken in fresh processes (`train_cell`), the tools in turn; a
figure is the median of the processes. The first process of a tool finds an empty compile
cache, the others what it left. The rows of a size are printed when it is done.

The peak of the device is measured with a large matrix product in the same run. MFU is model FLOP/s (6 per weight and
token, plus attention: `models.flops`) over the peak in bfloat16, or, where float32 is faster, in float32: the larger of
both.

stdout gets one line of JSON with flat keys.

    benchmark, date, machine.*, setting.*      settings and machine
    version.{torch,transformers}               null if it is not installed
    peak_flops.{bfloat16,float32}              FLOP/s of a large matrix product
    SIZE.TOOL.tokens_per_second.{median,min,max}
    SIZE.TOOL.model_flops                      FLOP/s, by the median
    SIZE.TOOL.mfu                              the same as a share of the peak
    SIZE.TOOL.first_step_seconds.{cold,warm}   with compilation: without and with a cache
    SIZE.TOOL.peak_memory_mb                   allocated on CUDA, else resident in the process
    SIZE.TOOL.dtype                            of the matrix products
    SIZE.TOOL.status                           only if it failed: "timeout" or "failed: …"
    SIZE.ratio.PEER                            our speed over the peer's: above 1 we are faster
"""

import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarking.runner import OK, Outcome, describe_run, print_summary, run_cell, spread, take_turns, versions_of
from benchmarking.train_cell import PEAK, Cell
from cli.progress import say
from cli.utils import EXIT_OK, run_command
from config.bench_train import OURS, BenchTrainConfig, TrainSize

EPILOG = "example: transformerlm-bench-train --config config/resources/bench_train.toml --benchmark.sizes S"
_ROW = "{:8}{:26}{:>10}{:>18}{:>10}{:>7}{:>10}{:>8}{:>8}{:>10}"
_HEADER = _ROW.format("size", "tool", "tokens/s", "range", "GFLOP/s", "MFU", "1st cold", "warm", "ratio", "memory MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(
        BenchTrainConfig,
        lambda invocation: bench_train(invocation.config),
        prog="transformerlm-bench-train",
        epilog=EPILOG,
        argv=argv,
    )


def bench_train(config: BenchTrainConfig) -> int:
    """Measure what `config` describes and report it; return the exit code."""
    settings = config.benchmark
    versions = versions_of(["torch", "transformers"])
    peers = [peer for peer in settings.peers if versions["transformers"] or not peer.startswith("llama")]
    summary = describe_run("train", settings, versions)
    peaks = run_cell(Cell(PEAK, {}, settings.device, settings.threads, 0.0), timeout=settings.timeout)
    summary |= peaks
    say(f"peak: {', '.join(f'{value / 1e9:,.0f} GFLOP/s in {key[11:]}' for key, value in peaks.items())}")
    say(_HEADER)
    for name in settings.sizes:
        size: TrainSize = getattr(config, name)
        if size.cuda_only and not _has_cuda():
            say(f"{name:8}is for CUDA and is skipped")
            continue
        summary |= measure_size(name, size, [OURS, *peers], config, max(peaks.values()))
    print_summary(summary)
    return EXIT_OK


def measure_size(
    name: str, size: TrainSize, tools: Sequence[str], config: BenchTrainConfig, peak: float
) -> dict[str, object]:
    """Measure all tools on one size; print a row for each; return their entries of the summary."""
    settings = config.benchmark
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:

        def run(tool: str, _repeat: int) -> dict[str, Any]:
            cell = Cell(tool, size.model_dump(), settings.device, settings.threads, settings.seconds)
            caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{tool}"}
            return run_cell(cell, timeout=settings.timeout, environment=caches)

        outcomes = take_turns(name, tools, settings.repeats, run)
    entries: dict[str, object] = {}
    for tool, outcome in outcomes.items():
        if outcome.status == OK:
            entries |= _summarise(name, tool, outcome, outcomes[OURS], peak)
            say(_row(name, tool, entries))
        else:
            entries[f"{name}.{tool}.status"] = outcome.status
    return entries


def _summarise(name: str, tool: str, outcome: Outcome, ours: Outcome, peak: float) -> dict[str, object]:
    key, first = f"{name}.{tool}", outcome.runs[0]
    speed = outcome.median("tokens_per_second")
    flops = speed * first["flops_per_token"]
    entries: dict[str, object] = {
        **spread(f"{key}.tokens_per_second", outcome.values("tokens_per_second")),
        f"{key}.model_flops": flops,
        f"{key}.mfu": flops / peak,
        f"{key}.first_step_seconds.cold": first["first_step_seconds"],
        f"{key}.first_step_seconds.warm": Outcome(outcome.runs[1:]).median("first_step_seconds"),
        f"{key}.peak_memory_mb": outcome.median("peak_memory_bytes") / 1e6,
        f"{key}.dtype": first["dtype"],
    }
    if tool != OURS and ours.status == OK:
        entries[f"{name}.ratio.{tool}"] = ours.median("tokens_per_second") / speed
    return entries


def _row(name: str, tool: str, entries: dict[str, Any]) -> str:
    def value(key: str) -> float:
        return entries[f"{name}.{tool}.{key}"]

    low, high = value("tokens_per_second.min"), value("tokens_per_second.max")
    ratio = entries.get(f"{name}.ratio.{tool}")
    return _ROW.format(
        name,
        tool,
        f"{value('tokens_per_second.median'):,.0f}",
        f"{low:,.0f} to {high:,.0f}",
        f"{value('model_flops') / 1e9:,.0f}",
        f"{value('mfu'):.0%}",
        f"{value('first_step_seconds.cold'):.1f} s",
        f"{value('first_step_seconds.warm'):.1f} s",
        "" if ratio is None else f"{ratio:.2f}",
        f"{value('peak_memory_mb'):,.0f}",
    )


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
