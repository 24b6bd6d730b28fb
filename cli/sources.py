"""Text sources, with a bar on stderr while the built-in corpus is written."""

from collections.abc import Sequence

from cli.progress import progress_bar, say
from config.schemas import BUILTIN_STORIES
from databuilder.sources import FormatSetting, SourceFile, builtin_corpus_path, resolve_sources, write_builtin_corpus


def find_sources(names: Sequence[str], *, format: FormatSetting = "auto") -> list[SourceFile]:
    """Return the files that `names` stand for, after writing the built-in corpus if it is named and not there.

    Raises the errors of `resolve_sources`.
    """
    if BUILTIN_STORIES in names and not builtin_corpus_path().exists():
        say(f"writing the built-in stories to {builtin_corpus_path()}")
        with progress_bar("stories") as update:
            write_builtin_corpus(lambda done, total: update(done / total, f"{done:,} of {total:,}"))
    return resolve_sources(names, format=format)
