"""The results of the tokenizer benchmark, as flat entries of a summary and as tables."""

import statistics
from collections.abc import Mapping, Sequence

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
    """Print the tables on stderr, one for each unit: our figure, each tool's, and by what factor ours is better."""
    start = [row for row in rows if row.operation == "start"]
    if start:
        cells = [[row.label, *(_number(summary, row, OURS, call) for call in row.calls)] for row in start]
        print_table("once a process, in seconds", ["", *start[0].calls], cells)
    titles = {
        "MB/s": "MB/s (and our speed over the peer's)",
        "µs": "microseconds (and our speed over the peer's)",
        "s": "seconds (and our speed over the peer's)",
    }
    for unit, title in titles.items():
        shown = [row for row in rows if row.unit == unit and row.operation != "start"]
        lines = [_line(row, call, summary, tools) for row in shown for call in row.calls]
        if lines:
            print_table(title, ["", *_taking_part(shown, tools)], lines)
    training = [row for row in rows if row.operation == "train"]
    if training:
        lines = [_memory_line(row, summary, tools) for row in training]
        title = "peak memory in MB (and ours as a share of the peer's)"
        print_table(title, ["", *_taking_part(training, tools)], lines)


def say_row(row: Row, summary: Mapping[str, object], tools: Sequence[str]) -> None:
    """Print a finished row on stderr, so that a stopped run still gives results."""
    for call in row.calls:
        label, *cells = _line(row, call, summary, tools)
        say(f"{label}: {', '.join(map(' '.join, zip(_taking_part([row], tools), cells, strict=True)))} {row.unit}")


def _taking_part(rows: Sequence[Row], tools: Sequence[str]) -> list[str]:
    """Return the tools that take part in any of `rows`; within a table they are the same for all rows."""
    return [tool for tool in tools if any(tool in row.tools for row in rows)]


def _line(row: Row, call: str, summary: Mapping[str, object], tools: Sequence[str]) -> list[str]:
    label = row.label if len(row.calls) == 1 else f"{row.label}, {call}"
    return [label, *(_cell(row, call, summary, tool) for tool in _taking_part([row], tools))]


def _cell(row: Row, call: str, summary: Mapping[str, object], tool: str) -> str:
    ratio = summary.get(f"{row.name}.ratio.{tool}.{call}")
    return _number(summary, row, tool, call) + (f" ({ratio:.2f})" if isinstance(ratio, float) else "")


def _number(summary: Mapping[str, object], row: Row, tool: str, call: str) -> str:
    status = summary.get(f"{row.name}.{tool}.status")
    if status is not None:
        return str(status).partition(":")[0]
    key = "mb_per_second" if row.unit == "MB/s" else "seconds.median"
    value = summary.get(f"{row.name}.{tool}.{call}.{key}")
    if not isinstance(value, float):
        return ""
    value *= 1e6 if row.unit == "µs" else 1
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory_line(row: Row, summary: Mapping[str, object], tools: Sequence[str]) -> list[str]:
    peaks = {tool: summary.get(f"{row.name}.{tool}.peak_memory_mb") for tool in _taking_part([row], tools)}
    ours = peaks.get(OURS)
    cells = []
    for tool, peak in peaks.items():
        share = f" ({ours / peak:.2f})" if tool != OURS and isinstance(ours, float) and isinstance(peak, float) else ""
        cells.append(f"{peak:,.0f}{share}" if isinstance(peak, float) else "")
    return [row.label, *cells]
