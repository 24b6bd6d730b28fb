"""A training corpus as blocks of 256 KiB that can be counted in any order.

    files, URLs    a.txt ────────────────────────────────────── b.gz ── c.txt
                   │ text │ text │ text │ text │ text │ text │  │text│  │text│         cut at safe places
    blocks         [ text ][ text ][ text ][ text ][ text ][ text ][ text  text ]

A text here is a section whose pre-tokens do not depend on its surroundings: a file, a document, or the part of one
between two safe cuts (see `streaming.safe_blocks`). A long text is a block; short ones share a block, so that a million
one-line documents do not become a million blocks.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.tokenizer.utf8 import valid_unicode
from transformerlm.utils.errors import DataError, require_list
from transformerlm.utils.text_files import TextPath, read_bytes, stored_size

BLOCK_BYTES = 1 << 18  # fits a processor's cache; counting takes a millisecond, much longer than handing it to a thread

Text: TypeAlias = str | bytes

Source: TypeAlias = TextPath | Sequence[TextPath] | Iterable[Text]
"""The source of a training corpus: a path or URL, a list or tuple of them, or any other iterable of texts."""


class Block(NamedTuple):
    """Concatenated texts, and the end of each."""

    data: bytes
    ends: list[int]

    def texts(self) -> Iterator[bytes]:
        """Yield the texts."""
        start = 0
        for end in self.ends:
            yield self.data[start:end]
            start = end


def corpus_blocks(
    source: Source, special_tokens: Sequence[str], on_read: Callable[[float], None] | None = None
) -> Iterator[Block]:
    """Return the blocks of `source`; `on_read` is called with the fraction read, if the total is known.

    Raises `DataError` at once if a file is missing; while the blocks are read, the errors of `corpus.read_bytes`, and
    `DataError` for an item that is not text.
    """
    paths = _paths(source)
    if paths is None:
        assert not isinstance(source, str | os.PathLike)
        return _filled(_texts(source, special_tokens))
    if not paths:
        raise DataError("no text file is given; give at least one")
    sizes = list(map(stored_size, paths))
    return _filled(_texts_of_files(paths, sizes, special_tokens, on_read))


def _paths(source: Source) -> list[TextPath] | None:
    """Return `source` as paths, or None if it is texts."""
    if isinstance(source, str | os.PathLike):
        return [source]
    require_list("input_path", source)  # bytes are neither a path nor texts
    if not isinstance(source, list | tuple):
        return None
    paths: list[TextPath] = []
    for path in source:
        if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
            raise DataError(
                f"a list names files, and one of its items is of type {type(path).__name__}; "
                "to train on the texts of a list, give iter(texts)"
            )
        paths.append(path)
    return paths


def _texts_of_files(
    paths: Sequence[TextPath],
    sizes: Sequence[int],
    special_tokens: Sequence[str],
    on_read: Callable[[float], None] | None,
) -> Iterator[bytes]:
    before, total = 0, max(1, sum(sizes))

    def report(bytes_read: int) -> None:
        if on_read:
            on_read(min(1.0, (before + bytes_read) / total))

    for path, size in zip(paths, sizes, strict=True):
        yield from safe_blocks(read_bytes(path, report), special_tokens, BLOCK_BYTES)
        before += size


def _texts(texts: Iterable[object], special_tokens: Sequence[str]) -> Iterator[bytes]:
    for text in texts:
        data = _encoded(text)
        if len(data) <= BLOCK_BYTES:
            yield data
        else:
            yield from safe_blocks([data], special_tokens, BLOCK_BYTES)


def _encoded(text: object) -> bytes:
    if isinstance(text, str):
        return valid_unicode(text).encode("utf-8")
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise DataError(f"a text is of type {type(text).__name__}; give str or bytes (and paths as a list or tuple)")


def _filled(texts: Iterable[bytes]) -> Iterator[Block]:
    """Yield `texts` in blocks of at most `BLOCK_BYTES`, or of one text."""
    waiting: list[bytes] = []
    ends: list[int] = []
    for text in texts:
        if ends and ends[-1] + len(text) > BLOCK_BYTES:
            yield Block(b"".join(waiting), ends)
            waiting, ends = [], []
        waiting.append(text)
        ends.append(len(text) + (ends[-1] if ends else 0))
    if ends:
        yield Block(b"".join(waiting), ends)
