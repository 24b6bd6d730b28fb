"""A source file, and an input split of it: the unit of work of the first phase."""

from dataclasses import dataclass
from typing import Literal

SourceFormat = Literal["text", "jsonl", "parquet"]


@dataclass(frozen=True)
class SourceFile:
    """A file to read text from."""

    name: str
    """A path, or a URL of fsspec."""
    num_bytes: int
    """Size as stored; 0 if the server does not report it."""
    format: SourceFormat
    version: str
    """Differs if the content may have changed; "" if unknown."""


@dataclass(frozen=True)
class InputSplit:
    """A range of a source that one task reads."""

    source: SourceFile
    number: int
    """Index among all splits."""
    begin: int = 0
    """Byte of plain text or JSON lines, or row group of Parquet."""
    end: int = -1
    """The same, exclusive; -1 means to the end."""
    num_bytes: int = 0
    """Share of the source's size, as stored; 0 if unknown."""
