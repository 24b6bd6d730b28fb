"""Which files a list of names means: files, globs, folders, URLs, and the corpus that is built in."""

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from config.schemas import BUILTIN_STORIES
from databuilder.stories import generator_version, write_corpus
from transformerlm.tokenizer.corpus import COMPRESSED_SUFFIXES, clear_errors, is_url, remote_info
from transformerlm.utils.errors import DataError, require_list

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


def resolve_sources(names: Iterable[str | Path], *, format: FormatSetting = "auto") -> list[SourceFile]:
    """Return the files that `names` stand for, in order, each once; the files of a glob or folder are sorted.

    A name is a file, a glob or a folder, here or as a URL of fsspec (a glob or a folder where the other side can list
    its files), or `builtin:stories`, which is `builtin_corpus_path()` and must have been written. A `format` of "auto"
    goes by each file's name. Raises `DataError` if a name matches nothing, a file is empty, or a folder mixes formats.
    """
    require_list("names", names)
    files: dict[str, SourceFile] = {}
    for name in map(str, names):
        builtin = name == BUILTIN_STORIES
        for match in [str(builtin_corpus_path())] if builtin else _matching(name, format):
            if match not in files:
                files[match] = describe_source(match, format="text" if builtin else format)
    return list(files.values())


def describe_source(name: str | Path, *, format: FormatSetting = "auto") -> SourceFile:
    """Return what there is to know of one file. Raises `DataError` if it is missing or empty."""
    name = str(name)
    if is_url(name):
        info = remote_info(name)
        num_bytes, version = info.get("size"), _remote_version(info)
    else:
        with clear_errors(name):
            status = Path(name).stat()
        num_bytes, version = status.st_size, str(status.st_mtime_ns)
    if num_bytes == 0:
        raise DataError(f"{name}: is empty; leave it out, or fetch it again")
    return SourceFile(name, num_bytes or 0, _format_of(name) if format == "auto" else format, version)


def builtin_corpus_path() -> Path:
    """Return where the built-in corpus lies; the name tells the version of the generator, so none goes stale."""
    return BUILTIN_FOLDER / f"stories-{BUILTIN_NUM_STORIES}-seed{BUILTIN_SEED}-{generator_version()}.txt"


def write_builtin_corpus(progress: Callable[[int, int], None] | None = None) -> None:
    """Write the built-in corpus, about 18 MB; `progress` is told stories done and to do."""
    write_corpus(builtin_corpus_path(), BUILTIN_NUM_STORIES, BUILTIN_SEED, progress)


def _matching(name: str, format: FormatSetting) -> list[str]:
    if not name:
        raise DataError("a source is an empty string; name a file, a glob or a folder ('.' for this one)")
    if is_url(name):
        return _matching_urls(name, format)
    path = Path(name)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        inside = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return [str(path / file) for file in _of_folder(name, inside, format)]
    matches = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = sorted(str(Path(match)) for match in matches if Path(match).is_file())
    if not files:
        raise DataError(f"{name}: there is no such file, folder or match; give a path, or '{BUILTIN_STORIES}'")
    return files


def _matching_urls(url: str, format: FormatSetting) -> list[str]:
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
        return [named(found[file]) for file in _of_folder(url, found, format)]


def _of_folder(name: str, files: Iterable[str], format: FormatSetting) -> list[str]:
    """Return which of the relative paths in a folder are text of the format, sorted."""
    found = sorted(PurePosixPath(file) for file in files if _is_source(PurePosixPath(file)))
    formats = {str(file): _format_of(file.name) for file in found}
    if format != "auto":
        formats = {file: kind for file, kind in formats.items() if kind == format}
    if not formats:
        kind, suffixes = "text" if format == "auto" else format, ", ".join(FOLDER_SUFFIXES)
        raise DataError(f"{name}: the folder holds no {kind} file ({suffixes}, also .gz, .xz or .zst)")
    if len(kinds := sorted(set(formats.values()))) > 1:
        raise DataError(
            f"{name}: the folder holds files of several formats ({', '.join(kinds)}); "
            f"give the format that is meant, or a glob such as {name.rstrip('/')}/*.{kinds[0]}"
        )
    return list(formats)


def _is_source(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return _text_suffix(path.name) in FOLDER_SUFFIXES and not hidden


def _format_of(name: str) -> SourceFormat:
    return RECORD_SUFFIXES.get(_text_suffix(name), "text")


def _text_suffix(name: str) -> str:
    """Return the suffix that tells what a file holds once it is decompressed."""
    if is_url(name):
        name = name.partition("::")[0].partition("?")[0]
    suffixes = [suffix for suffix in PurePosixPath(name).suffixes[-2:] if suffix not in COMPRESSED_SUFFIXES]
    return suffixes[-1].lower() if suffixes else ""


def _remote_version(info: dict[str, Any]) -> str:
    """Return what tells one content of a remote file from another, of what the other side says."""
    named = {key.lower().replace("-", "_"): value for key, value in info.items()}
    keys = ("etag", "blob_id", "content_md5", "digest", "mtime", "last_modified", "lastmodified", "created")
    return next((str(named[key]) for key in keys if named.get(key)), "")
