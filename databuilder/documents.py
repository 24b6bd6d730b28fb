"""Text as documents: cut at the separator, in memory bounded by the longest document."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from transformerlm.tokenizer.corpus import read_text


def read_documents(
    paths: Sequence[Path], separator: str, on_read: Callable[[int], None] | None = None
) -> Iterator[str]:
    """Yield the documents of the files, without separators and without the line breaks next to them.

    A file's end ends a document; empty documents are left out. `on_read` is told the bytes read of all files.
    """
    before = 0
    for path in paths:
        report = (lambda done, start=before: on_read(start + done)) if on_read else None
        for document in split_documents(read_text(path, report), separator):
            document = document.strip("\r\n")
            if document:
                yield document
        before += path.stat().st_size


def split_documents(parts: Iterable[str], separator: str) -> Iterator[str]:
    """Yield what `"".join(parts).split(separator)` holds, without ever joining all parts."""
    document: list[str] = []
    tail = ""  # the end of the document so far; a separator may begin in it
    for part in parts:
        *ended, text = (tail + part).split(separator)
        for end in ended:
            yield "".join((*document, end))
            document.clear()
        cut = max(0, len(text) - len(separator) + 1)
        document.append(text[:cut])
        tail = text[cut:]
    yield "".join((*document, tail))


def is_validation(document: str, fraction: float) -> bool:
    """Whether a document belongs to validation: a function of its text alone.

    So more files move no document across, and equal documents stay on one side.
    """
    digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split_single_document(document: str, fraction: float) -> tuple[str, str]:
    """Cut a text without separators in two at a line's end, the last `fraction` of it for validation."""
    cut = round(len(document) * (1 - fraction))
    line_end = document.find("\n", cut)
    cut = line_end + 1 if line_end >= 0 else cut
    return document[:cut].strip("\r\n"), document[cut:].strip("\r\n")
