"""The machinery of all benchmarks: fresh processes, tools in turn, statistics, one line of JSON and a table.

A measurement is taken in a process of its own (a cell), so that memory, caches and compiled code of one do not reach
the next. The tools take turns within each repeat, so that a busy moment of the machine affects all of them.
"""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.progress import say

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
FILE_COLUMNS = 120
OK, TIMEOUT, OTHER_IDS = "ok", "timeout", "other ids"


class CellError(Exception):
    """A process gave no result. The message is its status in a summary; the notes hold its stderr."""


def run_cell(
    cell: "DataclassInstance", *, timeout: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run the module that defines `cell` in a fresh process; return what `print_measurement` printed there.

    `timeout` is in seconds; `environment` is added to this process's. Raises `CellError`.
    """
    command = [sys.executable, "-m", type(cell).__module__, json.dumps(asdict(cell))]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | dict(environment or {}), capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise CellError(TIMEOUT) from None
    if done.returncode:
        stderr = done.stderr.decode("utf-8", errors="replace").strip() or "nothing on stderr"
        lines = stderr.splitlines()
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        error = CellError(f"failed: exit code {done.returncode}, {reason}")
        error.add_note(stderr)
        raise error
    return json.loads(done.stdout.splitlines()[-1])


def print_measurement(measurement: Mapping[str, Any]) -> None:
    """Print a cell's result as the last line of its stdout."""
    print()  # a peer may have left a line open
    print(json.dumps(measurement), flush=True)


@dataclass
class Outcome:
    """The measurements of one tool, and `OK` or why they cannot be compared."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    status: str = OK

    def add(self, run: dict[str, Any]) -> None:
        """Keep a measurement, unless its results were wrong."""
        if run.get("same") is False:
            self.status = OTHER_IDS
        else:
            self.runs.append(run)

    def values(self, key: str) -> list[float]:
        return [run[key] for run in self.runs]

    def median(self, key: str) -> float:
        return statistics.median(self.values(key))

    def memory(self, name: str) -> dict[str, float]:
        """Return the medians `name.memory_before_mb` and `name.peak_memory_mb`."""
        return {f"{name}.{key}_mb": self.median(f"{key}_bytes") / 1e6 for key in ("memory_before", "peak_memory")}


def take_turns(
    label: str, tools: Iterable[str], repeats: int, run: Callable[[str, int], dict[str, Any]]
) -> dict[str, Outcome]:
    """Call `run(tool, repeat)` for all tools in turn; a tool that fails is reported and not run again."""
    outcomes = {tool: Outcome() for tool in tools}
    for repeat in range(repeats):
        for tool, outcome in outcomes.items():
            if outcome.status != OK:
                continue
            try:
                outcome.add(run(tool, repeat))
            except CellError as error:
                outcome.status = str(error)
            if outcome.status != OK:
                say(f"{label}: {tool}: {outcome.status}")
    return outcomes


def seconds(action: Callable[[], object]) -> float:
    """Return how long one call of `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_calls(call: Callable[[], Any], names: Sequence[str] = ("cold", "warm")) -> tuple[dict[str, Any], Any]:
    """Time one call for each name; return `seconds` by name with the process's memory, and the last result."""
    gc.collect()
    before = memory_bytes("VmRSS")
    times: dict[str, float] = {}
    result = None
    for name in names:
        del result  # before the next call makes its own
        start = time.perf_counter()
        result = call()
        times[name] = time.perf_counter() - start
    return {"seconds": times, "memory_before_bytes": before, "peak_memory_bytes": memory_bytes("VmHWM")}, result


def memory_bytes(entry: str) -> int:
    """Return this process's resident memory now (`VmRSS`) or at its peak (`VmHWM`), as in proc(5).

    Without /proc both are the peak by `getrusage`.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else []:
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return median and range of `values` as the entries `name.median`, `name.min` and `name.max`."""
    return {f"{name}.median": statistics.median(values), f"{name}.min": min(values), f"{name}.max": max(values)}


def percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the entries `name.p50`, `name.p90` and `name.p99` of `values`."""
    import numpy as np

    return {f"{name}.p{percent}": float(np.percentile(values, percent)) for percent in (50, 90, 99)}


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; name those that are not installed."""
    versions = {package: installed_version(package) for package in packages}
    for package in (package for package, version in versions.items() if version is None):
        say(f"{package} is not installed and is skipped; install the peers with: uv sync --extra bench")
    return versions


def describe_run(
    benchmark: str, settings: "BaseModel", versions: Mapping[str, str | None], exclude: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the head of a summary: the benchmark's name, date, machine, settings and versions."""
    return {
        "benchmark": benchmark,
        **machine(),
        **{f"setting.{key}": value for key, value in settings.model_dump(mode="json", exclude=set(exclude)).items()},
        **{f"version.{name}": version for name, version in versions.items()},
    }


def machine() -> dict[str, object]:
    """Return what a timing depends on; a load near the number of cores spoils it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine.cpu": next(names, platform.processor() or platform.machine()),
        "machine.cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "machine.load_1min": os.getloadavg()[0],
        "machine.platform": platform.platform(),
        "machine.python": platform.python_version(),
    }


def print_summary(summary: Mapping[str, object]) -> None:
    """Print `summary` as one line of JSON on stdout. Raises `ValueError` on NaN and infinity."""
    print(json.dumps(summary, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stderr: labels in the first column, numbers in the others."""
    from rich import box  # imported here: it takes as long as the rest of a command's start
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A file has no width, and no column may be cut off in it.
    Console(stderr=True, width=None if sys.stderr.isatty() else FILE_COLUMNS).print(table)
