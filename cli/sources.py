"""Resolve text sources, with a progress bar while the built-in corpus is written."""

from collections.abc import Mapping, Sequence

from cli.progress import progress_bar, say
from config.schemas import BUILTIN_STORIES, InputSection
from databuilder.pieces import Reading
from databuilder.sources import FormatSetting, SourceFile, builtin_corpus_path, resolve_sources, write_builtin_corpus


def find_sources(names: Sequence[str], *, format: FormatSetting = "auto") -> list[SourceFile]:
    """Return the files that `names` match; the built-in corpus is written first if named and missing.

    Raises the errors of `resolve_sources`.
    """
    if BUILTIN_STORIES in names and not builtin_corpus_path().exists():
        say(f"writing the built-in stories to {builtin_corpus_path()}")
        with progress_bar("stories") as update:
            write_builtin_corpus(lambda done, total: update(done / total, f"{done:,} of {total:,}"))
    return resolve_sources(names, format=format, log=say)


def reading_of(settings: InputSection) -> Reading:
    """Return the reading settings of a configuration."""
    return Reading(settings.separator, settings.text_field, settings.errors, settings.skip_null)


def say_left_out(text: Mapping[str, int]) -> None:
    """Log what was left out and replaced; `text` is the result of `TextCounts.to_json`."""
    numbers = (
        (text["documents_not_utf8"], f"documents ({text['bytes_not_utf8'] / 1e6:,.1f} MB) that are not UTF-8"),
        (text["documents_empty"], "empty documents"),
        (text["documents_null"], "records without a text (null)"),
    )
    left_out = [f"{number:,} {what}" for number, what in numbers if number]
    if left_out:
        say(f"left out: {', '.join(left_out)}")
    if text["characters_replaced"]:
        say(f"replaced: {text['characters_replaced']:,} places that are not UTF-8, by U+FFFD")
