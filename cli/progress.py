"""Messages and progress on stderr: a live bar on a terminal, otherwise an occasional plain line."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS_BETWEEN_LINES = 10.0
_BAR_UNITS = 10_000  # rich counts in whole numbers

Update = Callable[[float, str], None]
"""Called with the fraction done, 0 to 1, and a short status text."""


def speaks() -> bool:
    """Whether this process prints messages; under torchrun only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line on stderr."""
    if speaks():
        print(text, file=sys.stderr, flush=True)


def say_compiling(what: str) -> None:
    """Announce a compilation, which takes a while."""
    say(f"compiling {what}: up to a minute, less when it is in the cache")


@contextlib.contextmanager
def progress_bar(label: str, *, enabled: bool = True) -> Iterator[Update]:
    """Show progress while the context is open; yields the function that updates it."""
    if not (enabled and speaks()):
        yield lambda _share, _words: None
    elif sys.stderr.isatty():
        with _live_bar(label) as update:
            yield update
    else:
        yield _lines(label)


@contextlib.contextmanager
def _live_bar(label: str) -> Iterator[Update]:
    from rich.console import Console  # imported here, since it would double a command's start-up time
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Lines printed to a terminal appear above the bar; a redirected stdout is data and is left alone.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(label, total=_BAR_UNITS, words="")
        last: float | None = None

        def update(share: float, words: str) -> None:
            nonlocal last
            if last is None or share < last:  # a start in the middle, or a new phase: no speed is known yet
                progress.reset(task, completed=round(share * _BAR_UNITS))
            last = share
            progress.update(task, completed=share * _BAR_UNITS, words=words)

        yield update


def _lines(label: str) -> Update:
    start = last = time.monotonic()
    first_share = last_share = 0.0

    def update(share: float, words: str) -> None:
        nonlocal start, last, first_share, last_share
        now = time.monotonic()
        if last_share == 0.0 or share < last_share:  # a start in the middle, or a new phase: no speed is known yet
            start, first_share = now, share
        last_share = share
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            done = share - first_share
            left = f"  {(now - start) * (1 - share) / done:.0f} s left" if done > 0 else ""
            say(f"  {label} {share:4.0%}  {words}{left}")

    return update
