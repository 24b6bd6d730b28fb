"""The console backend: one JSON object a line on stdout and nothing else, so `| jq -r "."` works."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, final

from logger.records import artifact_record, json_line


@final
class ConsoleLogger:
    """Writes every record to `stream` (stdout if None), one line at a time, flushed.

    When the reader of a pipe goes away (`| head -1`), the run goes on and its further lines are
    discarded: hours of training are worth more than the end of a pipe. stderr says so once.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def start(self, config: Mapping[str, object]) -> None:
        """Do nothing: the resolved config has its own command-line flag and file."""

    def log(self, record: Mapping[str, object]) -> None:
        """Write `record` as one line of JSON.

        Raises:
            TypeError: a value cannot be written as JSON.
        """
        try:
            self._stream.write(json_line(record) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            _discard_output(self._stream)
            print("the reader of stdout is gone: the run goes on without console records", file=sys.stderr)

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Write one line that names the artifact and its path."""
        self.log(artifact_record(path, name=name, kind=kind))

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing: every line is flushed already, and the stream belongs to the caller."""


def _discard_output(stream: TextIO) -> None:
    """Point the stream's descriptor at the null device.

    What is still buffered goes there too, so that neither later lines nor the interpreter's flush at
    exit fail again.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
