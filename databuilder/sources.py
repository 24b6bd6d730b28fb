"""Resolve source names to files: paths, globs, folders, URLs, and the built-in corpus."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

from databuilder.build_directory import Log
from databuilder.source_file import SourceFile, SourceFormat
from databuilder.stories import generator_version, write_corpus
from transformerlm.hparams import BUILTIN_STORIES
from transformerlm.utils.errors import DataError, require_list
from transformerlm.utils.file_content import COMPRESSED_SUFFIXES
from transformerlm.utils.text_files import clear_errors, is_url, remote_info

BUILTIN_FOLDER = Path("data/builtin")
BUILTIN_NUM_STORIES = 20_000
BUILTIN_SEED = 0

FormatSetting = Literal["auto", "text", "jsonl", "parquet"]

TEXT_SUFFIXES = (".txt", ".md", ".text")
RECORD_SUFFIXES: dict[str, SourceFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
FOLDER_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".parquet")
"""Suffixes that a folder is searched for; not .json, since such a file beside data usually describes it."""


def resolve_sources(
    names: Iterable[str | Path], *, format: FormatSetting = "auto", log: Log | None = None
) -> list[SourceFile]:
    """Return the files that `names` refer to, in order, each once; the files of a glob or folder are sorted.

    A name is a file, glob or folder, as a local path or an fsspec URL (globs and folders only if the server can list
    files), or `builtin:stories` for `builtin_corpus_path()`, which must exist. With the `format` "auto", the file's
    name gives the format. `log` is called with a line per folder that has unused files, and one about files found under
    two names. Raises `DataError` if a name matches nothing, is a pipe, or is a folder of several formats.
    """
    require_list("names", names)
    log = log or (lambda _line: None)
    files: dict[Hashable, SourceFile] = {}
    repeated: dict[str, str] = {}
    for name in map(str, names):
        builtin = name == BUILTIN_STORIES
        for match in [str(builtin_corpus_path())] if builtin else _matching(name, format, log):
            file = describe_source(match, format="text" if builtin else format)
            known = files.setdefault(identity(match), file)
            if known.name != match:
                repeated[match] = known.name
    if repeated:
        examples = _listed([f"{name} is {known}" for name, known in repeated.items()])
        log(f"read once: {len(repeated):,} files under a second name ({examples})")
    return list(files.values())


def describe_source(name: str | Path, *, format: FormatSetting = "auto") -> SourceFile:
    """Return the description of one file. Raises `DataError` if it is missing or not a regular file."""
    name = str(name)
    if is_url(name):
        info = remote_info(name)
        num_bytes, version = info.get("size"), _remote_version(info)
    else:
        with clear_errors(name):
            status = Path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"{name}: is a folder, pipe or device, not a file; write the output of a pipe to a file first"
            )
        num_bytes, version = status.st_size, str(status.st_mtime_ns)
    return SourceFile(name, num_bytes or 0, _format_of(name) if format == "auto" else format, version)


def identity(name: str) -> Hashable:
    """Return a key that is equal for two names of the same file, through hard and symbolic links; a URL is its own."""
    if is_url(name):
        return name
    with clear_errors(name):
        status = Path(name).stat()
    return status.st_dev, status.st_ino


def log_empty_sources(files: Iterable[SourceFile], num_documents: Mapping[str, int], log: Log) -> None:
    """Log which `files` have no documents; `num_documents` is the number in each, by name."""
    empty = [file.name for file in files if not num_documents.get(file.name)]
    if empty:
        log(f"without any document: {_listed(empty)}")


def builtin_corpus_path() -> Path:
    """Return the path of the built-in corpus; the name includes the generator's version, so it is never outdated."""
    return BUILTIN_FOLDER / f"stories-{BUILTIN_NUM_STORIES}-seed{BUILTIN_SEED}-{generator_version()}.txt"


def write_builtin_corpus(progress: Callable[[int, int], None] | None = None) -> None:
    """Write the built-in corpus, about 18 MB; `progress` is called with the stories written and their total."""
    write_corpus(builtin_corpus_path(), BUILTIN_NUM_STORIES, BUILTIN_SEED, progress)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3:,} more" if len(names) > 3 else "")


def _matching(name: str, format: FormatSetting, log: Log) -> list[str]:
    if not name:
        raise DataError("a source is an empty string; name a file, a glob or a folder ('.' for this one)")
    if is_url(name):
        return _matching_urls(name, format, log)
    path = Path(name)
    with clear_errors(name):
        if path.is_dir():
            inside = (file.relative_to(path).as_posix() for file in _files_below(path))
            return [str(path / file) for file in _of_folder(name, inside, format, log)]
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
        folders.sort()  # so that the path under which a linked folder is visited does not depend on the disk
        yield from (Path(root, file) for file in files)


def _glob(pattern: Path) -> Iterator[Path]:
    """Yield the matches of a recursive glob; unlike `glob.glob`, links that form a cycle are not followed forever."""
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


def _matching_urls(url: str, format: FormatSetting, log: Log) -> list[str]:
    """Return the files of a URL. Only `*` makes it a glob: `?` and `[` are too common in URLs."""
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
        # Asking a web server whether a URL is a folder would download the file.
        if first.startswith(("http://", "https://")) or not file_system.isdir(path):
            return [url]
        root = PurePosixPath(path)
        found = {str(PurePosixPath(file).relative_to(root)): file for file in file_system.find(path)}
        return [named(found[file]) for file in _of_folder(url, found, format, log)]


def _of_folder(name: str, files: Iterable[str], format: FormatSetting, log: Log) -> list[str]:
    """Return the relative paths of a folder that are text of the format, sorted; log the others."""
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
            f"set the format to read, or give a glob such as {name.rstrip('/')}/*.{kinds[0]}"
        )
    if left_out:
        what = _listed([f"{number:,} {suffix}" for suffix, number in left_out.most_common()])
        log(f"{name}: {len(formats):,} files are read, {left_out.total():,} left out ({what}); name them to read them")
    return list(formats)


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format_of(name: str) -> SourceFormat:
    return RECORD_SUFFIXES.get(_text_suffix(name), "text")


def _text_suffix(name: str) -> str:
    """Return the suffix of a file's name, in lower case and without the suffix of a compression."""
    if is_url(name):
        name = name.partition("::")[0].partition("?")[0]
    suffixes = [suffix for suffix in PurePosixPath(name.lower()).suffixes[-2:] if suffix not in COMPRESSED_SUFFIXES]
    return suffixes[-1] if suffixes else ""


def _remote_version(info: dict[str, Any]) -> str:
    """Return what the server reports about a remote file's version: an entity tag, digest or time; "" if nothing."""
    named = {key.lower().replace("-", "_"): value for key, value in info.items()}
    keys = ("etag", "blob_id", "content_md5", "digest", "mtime", "last_modified", "lastmodified", "created")
    return next((str(named[key]) for key in keys if named.get(key)), "")
