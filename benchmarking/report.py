"""What a benchmark says: one line of JSON on stdout, a table for people on stderr, the machine it ran on."""

import json
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

FILE_COLUMNS = 120


def print_summary(summary: Mapping[str, object]) -> None:
    """Print `summary` as one line of JSON on stdout. NaN and infinity are refused: no timing gives them."""
    print(json.dumps(summary, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stderr: the first column is words, the others are numbers."""
    from rich import box  # imported here: it takes as long as the rest of a command's start
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A file has no width of its own, and nothing may be cut off in it.
    Console(stderr=True, width=None if sys.stderr.isatty() else FILE_COLUMNS).print(table)


def machine() -> dict[str, object]:
    """Return what a timing depends on; a load near the number of cores spoils it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine.cpu": _cpu_name(),
        "machine.cores": cores,
        "machine.load_1min": os.getloadavg()[0],
        "machine.platform": platform.platform(),
        "machine.python": platform.python_version(),
    }


def peak_rss_bytes() -> int:
    """Return the most memory that this process has had resident, worker processes left out."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
