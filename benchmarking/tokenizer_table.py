"""The results of the tokenizer benchmark, as flat entries of a summary and as tables."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarking.runner import OK, Outcome, print_table, spread
from benchmarking.tokenizer_rows import OURS, Row
from cli.progress import say


def summarise(row: Row, outcomes: Mapping[str, Outcome], text_bytes: Mapping[str, int]) -> dict[str, object]:
    """Return the summary's entries for the tools that took part; keys as in `bench_tokenizer`."""
    entries: dict[str, object] = {}
    ours = outcomes[OURS]  # takes part in every row
    for tool, outcome in outcomes.items():
        key = f"{row.name}.{tool}"
        if outcome.status != OK:
            entries[f"{key}.status"] = outcome.status
            continue
        entries |= outcome.memory(key)
        compared = ours.status == OK and tool != OURS
        for call in row.calls:
            entries |= spread(f"{key}.{call}.seconds", _seconds(outcome, call))
            speed = _speed(row, tool, call, outcome, text_bytes)
            if row.operation not in ("start", "short_call"):
                entries[f"{key}.{call}.mb_per_second"] = speed / 1e6
            if compared:
                entries[f"{row.name}.ratio.{tool}.{call}"] = _speed(row, OURS, call, ours, text_bytes) / speed
        if compared and "tokens" in ours.runs[0]:
            our_tokens, their_tokens = (set(one.runs[0]["tokens"]) for one in (ours, outcome))
            entries[f"{key}.shared_tokens"] = len(our_tokens & their_tokens) / max(1, len(their_tokens))
    return entries


def _seconds(outcome: Outcome, call: str) -> list[float]:
    return [run["seconds"][call] for run in outcome.runs]


def _speed(row: Row, tool: str, call: str, outcome: Outcome, text_bytes: Mapping[str, int]) -> float:
    """Return the median speed in bytes per second of the tool's text; for short calls, in calls per second."""
    work = 1 if row.operation == "short_call" else text_bytes[row.text_of(tool)]
    return work / statistics.median(_seconds(outcome, call))


def print_results(rows: Sequence[Row], summary: Mapping[str, object], tools: Sequence[str]) -> None:
    """Print the tables on stderr: for each tool its figure and the factor by which ours is better."""
    start = [row for row in rows if row.operation == "start"]
    if start:
        lines = [[row.label, *(_figure(row, call, summary, OURS) for call in row.calls)] for row in start]
        print_table("once per process, in seconds", ["", *start[0].calls], lines)
    for unit, name in {"MB/s": "MB/s", "µs": "microseconds", "s": "seconds"}.items():
        shown = [row for row in rows if row.unit == unit and row.operation != "start"]
        if shown:
            lines = [_line(row, call, summary, tools) for row in shown for call in row.calls]
            print_table(f"{name} (and our speed over the peer's)", ["", *_taking_part(shown[0], tools)], lines)
    training = [row for row in rows if row.operation == "train"]
    if training:
        lines = [[row.label, *(_memory(row, summary, tool) for tool in _taking_part(row, tools))] for row in training]
        title = "peak memory in MB (and ours as a share of the peer's)"
        print_table(title, ["", *_taking_part(training[0], tools)], lines)


def say_row(row: Row, summary: Mapping[str, object], tools: Sequence[str]) -> None:
    """Print a finished row on stderr, so that a stopped run still gives results."""
    for call in row.calls:
        label, *figures = _line(row, call, summary, tools)
        say(f"{label}: {', '.join(map(' '.join, zip(_taking_part(row, tools), figures, strict=True)))} {row.unit}")


def _taking_part(row: Row, tools: Sequence[str]) -> list[str]:
    """Return the tools that take part in a row; they are the same in all rows of a table."""
    return [tool for tool in tools if tool in row.tools]


def _line(row: Row, call: str, summary: Mapping[str, object], tools: Sequence[str]) -> list[str]:
    label = row.label if len(row.calls) == 1 else f"{row.label}, {call}"
    return [label, *(_figure(row, call, summary, tool) for tool in _taking_part(row, tools))]


def _figure(row: Row, call: str, summary: Mapping[str, Any], tool: str) -> str:
    key = f"{row.name}.{tool}"
    if f"{key}.status" in summary:
        return summary[f"{key}.status"].partition(":")[0]
    value = summary[f"{key}.{call}.mb_per_second" if row.unit == "MB/s" else f"{key}.{call}.seconds.median"]
    value *= 1e6 if row.unit == "µs" else 1
    ratio = summary.get(f"{row.name}.ratio.{tool}.{call}")
    return (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + ("" if ratio is None else f" ({ratio:.2f})")


def _memory(row: Row, summary: Mapping[str, Any], tool: str) -> str:
    ours, peak = (summary.get(f"{row.name}.{name}.peak_memory_mb") for name in (OURS, tool))
    if peak is None:
        return ""
    return f"{peak:,.0f}" if tool == OURS or ours is None else f"{peak:,.0f} ({ours / peak:.2f})"
