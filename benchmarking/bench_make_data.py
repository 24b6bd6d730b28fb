"""`transformerlm-bench-make-data`: how fast a text file becomes a token file, compared with other tokenizers.

A text is made from the sources (`tokenizer_text`) and cut into documents, and each measurement is taken in fresh
processes (`make_data_cell`), the tools in turn. A figure is the median of the processes. Our data builder does more
than the peers: it reads in parts, hashes and shuffles documents, and survives being killed at any moment.
`not_tokenization` is the cost of that: the share of its time in excess of our tokenizer alone, which encodes the same
documents from memory. Memory is the peak of the whole process.

stdout gets one line of JSON with flat keys. MB are 10^6 bytes of the text file; SIZE is such a number.

    benchmark, date, machine.*, setting.*    settings and machine
    version.NAME                             of the peers; null for a peer that is not installed
    SIZE.text.{bytes,documents}
    SIZE.TOOL.seconds.{median,min,max}       TOOL is transformerlm, tokenizer (ours alone) or a peer
    SIZE.TOOL.mb_per_second                  by the median
    SIZE.TOOL.peak_memory_mb                 resident, of the whole process; median
    SIZE.TOOL.memory_before_mb               the same when the timed call begins
    SIZE.TOOL.tokens
    SIZE.TOOL.status                         only if it cannot be compared: "timeout", "other ids", "failed: …"
    SIZE.not_tokenization                    share of our time in excess of the tokenizer alone
    SIZE.ratio.PEER                          our speed over the peer's: above 1 we are faster
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarking.bench_tokenizer import find_texts, save_tokenizer
from benchmarking.make_data_cell import PREPARE, Cell
from benchmarking.runner import (
    OK,
    Outcome,
    describe_run,
    print_summary,
    print_table,
    run_cell,
    spread,
    take_turns,
    versions_of,
)  # fmt: skip
from cli.progress import say
from cli.utils import EXIT_OK, run_command
from config.bench_make_data import ALONE, OURS, BenchMakeDataConfig, BenchMakeDataSection

EPILOG = (
    "example: transformerlm-bench-make-data --config config/resources/bench_make_data.toml --benchmark.megabytes 50"
)
COLUMNS = ("text, tool", "MB/s", "seconds", "range", "memory MB", "ours is")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(
        BenchMakeDataConfig,
        lambda invocation: bench_make_data(invocation.config),
        prog="transformerlm-bench-make-data",
        epilog=EPILOG,
        argv=argv,
    )


def bench_make_data(config: BenchMakeDataConfig) -> int:
    """Measure what `config` describes and report it; return the exit code."""
    settings = config.benchmark
    versions = versions_of(settings.peers)
    summary = describe_run("make_data", settings, versions)
    rows: list[list[str]] = []
    for size in settings.megabytes:
        peers = [peer for peer in settings.peers if versions[peer] and size <= settings.peer_megabytes]
        with tempfile.TemporaryDirectory(prefix="bench-make-data-") as folder:
            entries = measure_size(size, [OURS, ALONE, *peers], settings, Path(folder))
        summary |= entries
        rows += [_row(size, tool, entries) for tool in (OURS, ALONE, *peers)]
    print_table(f"From text to token files on {settings.threads} cores", COLUMNS, rows)
    print_summary(summary)
    return EXIT_OK


def measure_size(size: int, tools: Sequence[str], settings: BenchMakeDataSection, folder: Path) -> dict[str, Any]:
    """Make a text of `size` MB in `folder` and measure all tools on it; return their entries of the summary."""
    say(f"making a text of {size} MB")
    (folder / "tokenizer").mkdir()
    save_tokenizer(settings, folder / "tokenizer")
    common = Cell(OURS, str(folder / "text.txt"), str(folder / "tokenizer"), str(folder), settings.threads)
    preparation = replace(
        common,
        tool=PREPARE,
        sources=tuple(str(path.absolute()) for path in find_texts(settings)),
        num_bytes=size * 10**6,
        document_bytes=settings.document_bytes,
        seed=settings.seed,
    )
    text = run_cell(preparation, timeout=settings.timeout)
    expected: list[tuple[int, int]] = []

    def run(tool: str, repeat: int) -> dict[str, Any]:
        say(f"{size} MB: {tool}, {repeat + 1} of {settings.repeats}")
        result = run_cell(replace(common, tool=tool), timeout=settings.timeout)
        ids = result["tokens"], result["sum"]
        if tool == OURS and not expected:
            expected.append(ids)
        return result | {"same": not expected or ids == expected[0]}

    outcomes = take_turns(f"{size} MB", tools, settings.repeats, run)
    return {
        **{f"{size}.text.{key}": value for key, value in text.items()},
        **{f"{size}.{tool}.status": outcome.status for tool, outcome in outcomes.items() if outcome.status != OK},
        **_summarise(size, {tool: o for tool, o in outcomes.items() if o.status == OK}, text["bytes"]),
    }


def _summarise(size: int, outcomes: dict[str, Outcome], text_bytes: int) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    seconds = {tool: outcome.median("seconds") for tool, outcome in outcomes.items()}
    for tool, outcome in outcomes.items():
        key = f"{size}.{tool}"
        entries |= spread(f"{key}.seconds", outcome.values("seconds")) | outcome.memory(key)
        entries[f"{key}.mb_per_second"] = text_bytes / 1e6 / seconds[tool]
        entries[f"{key}.tokens"] = outcome.runs[0]["tokens"]
        if tool not in (OURS, ALONE) and OURS in seconds:
            entries[f"{size}.ratio.{tool}"] = seconds[tool] / seconds[OURS]
    if OURS in seconds and ALONE in seconds:
        entries[f"{size}.not_tokenization"] = 1 - seconds[ALONE] / seconds[OURS]
    return entries


def _row(size: int, tool: str, entries: dict[str, Any]) -> list[str]:
    key = f"{size}.{tool}"
    name = f"{size} MB, {'tokenizer alone' if tool == ALONE else tool}"
    if f"{key}.status" in entries:
        return [name, entries[f"{key}.status"], "", "", "", ""]
    remark = ""
    if f"{size}.ratio.{tool}" in entries:
        remark = f"{entries[f'{size}.ratio.{tool}']:.1f} times as fast"
    elif tool == ALONE and f"{size}.not_tokenization" in entries:
        remark = f"{entries[f'{size}.not_tokenization']:.0%} not tokenization"
    return [
        name,
        f"{entries[f'{key}.mb_per_second']:.1f}",
        f"{entries[f'{key}.seconds.median']:.2f}",
        f"{entries[f'{key}.seconds.min']:.2f} to {entries[f'{key}.seconds.max']:.2f}",
        f"{entries[f'{key}.peak_memory_mb']:,.0f}",
        remark,
    ]


if __name__ == "__main__":
    sys.exit(main())
