"""Which text files a list of names means: files, globs, folders, and the corpus that is built in."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from config.schemas import BUILTIN_STORIES
from databuilder.stories import generator_version, write_corpus
from transformerlm.utils.errors import DataError

BUILTIN_FOLDER = Path("data/builtin")
BUILTIN_NUM_STORIES = 20_000
BUILTIN_SEED = 0
TEXT_SUFFIXES = (".txt", ".md", ".text")
COMPRESSED_SUFFIXES = (".gz", ".xz", ".zst")


def resolve_sources(names: Sequence[str]) -> list[Path]:
    """Return the files that `names` stand for, in order, each once; the files of a glob or folder are sorted.

    `builtin:stories` is `builtin_corpus_path()`, which must have been written. Raises `DataError` if a name matches
    nothing.
    """
    paths: list[Path] = []
    for name in names:
        paths += [builtin_corpus_path()] if name == BUILTIN_STORIES else _matching(name)
    return list(dict.fromkeys(paths))


def builtin_corpus_path() -> Path:
    """Return where the built-in corpus lies; the name tells the version of the generator, so none goes stale."""
    return BUILTIN_FOLDER / f"stories-{BUILTIN_NUM_STORIES}-seed{BUILTIN_SEED}-{generator_version()}.txt"


def write_builtin_corpus(progress: Callable[[int, int], None] | None = None) -> None:
    """Write the built-in corpus, about 18 MB; `progress` is told stories done and to do."""
    write_corpus(builtin_corpus_path(), BUILTIN_NUM_STORIES, BUILTIN_SEED, progress)


def _matching(name: str) -> list[Path]:
    if not name:
        raise DataError("a source is an empty string; name a file, a glob or a folder ('.' for this one)")
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _is_text(file.relative_to(path)))
        if not files:
            raise DataError(
                f"{name}: the folder holds no text file ({', '.join(TEXT_SUFFIXES)}, also .gz, .xz or .zst)"
            )
        return files
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = sorted(Path(match) for match in matches if Path(match).is_file())
    if not files:
        raise DataError(f"{name}: there is no such file, folder or match; give a path, or '{BUILTIN_STORIES}'")
    return files


def _is_text(path: Path) -> bool:
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in COMPRESSED_SUFFIXES]
    hidden = any(part.startswith(".") for part in path.parts)
    return bool(suffixes) and suffixes[-1] in TEXT_SUFFIXES and not hidden
