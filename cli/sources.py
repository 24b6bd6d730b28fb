"""Text sources, with a word on stderr while the built-in corpus is written."""

from collections.abc import Sequence
from pathlib import Path

from cli.progress import progress_bar
from databuilder.sources import resolve_sources


def find_sources(names: Sequence[str]) -> list[Path]:
    """Return the files that `names` stand for; see `databuilder.sources.resolve_sources`."""
    with progress_bar("writing the built-in stories") as update:
        return resolve_sources(names, lambda done, total: update(done / total, f"{done:,} of {total:,}"))
