"""Which files a list of names means: files, globs, folders, URLs, and the corpus that is built in."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

from config.schemas import BUILTIN_STORIES
from databuilder.build_directory import Say
from databuilder.stories import generator_version, write_corpus
from transformerlm.utils.errors import DataError, require_list
from transformerlm.utils.file_content import COMPRESSED_SUFFIXES
from transformerlm.utils.text_files import clear_errors, is_url, remote_info

BUILTIN_FOLDER = Path("data/builtin")
BUILTIN_NUM_STORIES = 20_000
BUILTIN_SEED = 0

SourceFormat = Literal["text", "jsonl", "parquet"]
FormatSetting = Literal["auto", "text", "jsonl", "parquet"]

TEXT_SUFFIXES = (".txt", ".md", ".text")
RECORD_SUFFIXES: dict[str, SourceFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
FOLDER_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".parquet")
"""What a folder is searched for; a lone .json beside data mostly describes it."""


@dataclass(frozen=True)
class SourceFile:
    """A file to read text from."""

    name: str
    """A path, or a URL of fsspec."""
    num_bytes: int
    """Size as stored; 0 if the server does not say."""
    format: SourceFormat
    version: str
    """Differs when the content may have changed; "" if nothing is known."""


def resolve_sources(
    names: Iterable[str | Path], *, format: FormatSetting = "auto", say: Say | None = None
) -> list[SourceFile]:
    """Return the files that `names` stand for, in order, each once; the files of a glob or folder are sorted.

    A name is a file, a glob or a folder, here or as a URL of fsspec (a glob or a folder where the other side can list
    its files), or `builtin:stories`, which is `builtin_corpus_path()` and must have been written. A `format` of "auto"
    goes by each file's name. `say` gets one line per folder with what it leaves out, and one about files
    that have a second name. Raises `DataError` if a name matches nothing, is a pipe, or is a folder of several formats.
    """
    require_list("names", names)
    say = say or (lambda _line: None)
    files: dict[Hashable, SourceFile] = {}
    repeated: dict[str, str] = {}
    for name in map(str, names):
        builtin = name == BUILTIN_STORIES
        for match in [str(builtin_corpus_path())] if builtin else _matching(name, format, say):
            file = describe_source(match, format="text" if builtin else format)
            known = files.setdefault(identity(match), file)
            if known.name != match:
                repeated[match] = known.name
    if repeated:
        examples = _listed([f"{name} is {known}" for name, known in repeated.items()])
        say(f"read once: {len(repeated):,} files under a second name ({examples})")
    return list(files.values())


def describe_source(name: str | Path, *, format: FormatSetting = "auto") -> SourceFile:
    """Return what there is to know of one file. Raises `DataError` if it is missing or no regular file."""
    name = str(name)
    if is_url(name):
        info = remote_info(name)
        num_bytes, version = info.get("size"), _remote_version(info)
    else:
        with clear_errors(name):
            status = Path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"{name}: is a folder, pipe or device where a file is wanted; write what a pipe holds to a file first"
            )
        num_bytes, version = status.st_size, str(status.st_mtime_ns)
    return SourceFile(name, num_bytes or 0, _format_of(name) if format == "auto" else format, version)


def identity(name: str) -> Hashable:
    """Return what is equal for two names of one file, links of either kind included; of a URL, itself."""
    if is_url(name):
        return name
    with clear_errors(name):
        status = Path(name).stat()
    return status.st_dev, status.st_ino


def say_empty(files: Iterable[SourceFile], num_documents: Mapping[str, int], say: Say) -> None:
    """Tell `say` which of `files` hold no document; `num_documents` is how many each has, by name."""
    empty = [file.name for file in files if not num_documents.get(file.name)]
    if empty:
        say(f"without any document: {_listed(empty)}")


def builtin_corpus_path() -> Path:
    """Return where the built-in corpus lies; the name tells the version of the generator, so none goes stale."""
    return BUILTIN_FOLDER / f"stories-{BUILTIN_NUM_STORIES}-seed{BUILTIN_SEED}-{generator_version()}.txt"


def write_builtin_corpus(progress: Callable[[int, int], None] | None = None) -> None:
    """Write the built-in corpus, about 18 MB; `progress` is told stories done and to do."""
    write_corpus(builtin_corpus_path(), BUILTIN_NUM_STORIES, BUILTIN_SEED, progress)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3:,} more" if len(names) > 3 else "")


def _matching(name: str, format: FormatSetting, say: Say) -> list[str]:
    if not name:
        raise DataError("a source is an empty string; name a file, a glob or a folder ('.' for this one)")
    if is_url(name):
        return _matching_urls(name, format, say)
    path = Path(name)
    with clear_errors(name):
        if path.is_dir():
            inside = (file.relative_to(path).as_posix() for file in _files_below(path))
            return [str(path / file) for file in _of_folder(name, inside, format, say)]
        if path.exists():
            return [str(path)]
        files = sorted(str(match) for match in _glob(path) if match.is_file())
    if not files:
        raise DataError(f"{name}: there is no such file, folder or match; give a path, or '{BUILTIN_STORIES}'")
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; links are followed, and each folder is visited once."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[Hashable] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        if (key := identity(root)) in seen:
            folders.clear()
            continue
        seen.add(key)
        folders.sort()  # so that the name under which a folder is met does not depend on the disk
        yield from (Path(root, file) for file in files)


def _glob(pattern: Path) -> Iterator[Path]:
    """Yield what matches, as `glob.glob` with `recursive` does, which would follow links in circles."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return
    from fsspec.utils import glob_translate

    root = Path(*pattern.parts[: next(n for n, part in enumerate(pattern.parts) if glob.has_magic(part))])
    wanted = re.compile(glob_translate(str(pattern)))
    shows_hidden = any(part.startswith(".") for part in pattern.parts[len(root.parts) :])
    if root.is_dir():
        for file in _files_below(root):
            if wanted.match(str(file)) and (shows_hidden or not _is_hidden(file.relative_to(root))):
                yield file


def _matching_urls(url: str, format: FormatSetting, say: Say) -> list[str]:
    """Return the files of a URL; `*` makes it a glob (`?` and `[` are too common in URLs)."""
    first, *chain = url.split("::")  # "zip://*.txt::https://…/a.zip"
    with clear_errors(url):
        from fsspec.core import url_to_fs

        file_system, path = url_to_fs(url)

        def named(found: str) -> str:
            return "::".join((file_system.unstrip_protocol(found), *chain))

        if "*" in first:
            matches: dict[str, dict[str, Any]] = file_system.glob(path, detail=True)
            files = sorted(named(match) for match, info in matches.items() if info["type"] != "directory")
            if not files:
                raise DataError(f"{url}: there is no match; name the files one by one if they cannot be listed there")
            return files
        # To ask a web server whether it lists a folder is to fetch the file if it is one.
        if first.startswith(("http://", "https://")) or not file_system.isdir(path):
            return [url]
        root = PurePosixPath(path)
        found = {str(PurePosixPath(file).relative_to(root)): file for file in file_system.find(path)}
        return [named(found[file]) for file in _of_folder(url, found, format, say)]


def _of_folder(name: str, files: Iterable[str], format: FormatSetting, say: Say) -> list[str]:
    """Return which of the relative paths in a folder are text of the format, sorted; tell `say` of the others."""
    formats: dict[str, SourceFormat] = {}
    left_out = Counter[str]()
    for file in sorted(map(PurePosixPath, files)):
        if _is_hidden(file):
            left_out["hidden"] += 1
        elif _text_suffix(file.name) in FOLDER_SUFFIXES and format in ("auto", kind := _format_of(file.name)):
            formats[str(file)] = kind
        else:
            left_out["".join(file.suffixes[-2:]) or "without suffix"] += 1
    if not formats:
        kind, suffixes = "text" if format == "auto" else format, ", ".join(FOLDER_SUFFIXES)
        packed = ", ".join(COMPRESSED_SUFFIXES)
        raise DataError(f"{name}: the folder holds no {kind} file ({suffixes}, also compressed: {packed})")
    if len(kinds := sorted(set(formats.values()))) > 1:
        raise DataError(
            f"{name}: the folder holds files of several formats ({', '.join(kinds)}); "
            f"give the format that is meant, or a glob such as {name.rstrip('/')}/*.{kinds[0]}"
        )
    if left_out:
        what = _listed([f"{number:,} {suffix}" for suffix, number in left_out.most_common()])
        say(f"{name}: {len(formats):,} files are read, {left_out.total():,} left out ({what}); name them to read them")
    return list(formats)


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format_of(name: str) -> SourceFormat:
    return RECORD_SUFFIXES.get(_text_suffix(name), "text")


def _text_suffix(name: str) -> str:
    """Return the suffix that tells what a file holds once it is decompressed."""
    if is_url(name):
        name = name.partition("::")[0].partition("?")[0]
    suffixes = [suffix for suffix in PurePosixPath(name.lower()).suffixes[-2:] if suffix not in COMPRESSED_SUFFIXES]
    return suffixes[-1] if suffixes else ""


def _remote_version(info: dict[str, Any]) -> str:
    """Return what tells one content of a remote file from another, of what the other side says."""
    named = {key.lower().replace("-", "_"): value for key, value in info.items()}
    keys = ("etag", "blob_id", "content_md5", "digest", "mtime", "last_modified", "lastmodified", "created")
    return next((str(named[key]) for key in keys if named.get(key)), "")
