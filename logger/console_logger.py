"""The console backend. In a pipe or file, stdout is one JSON object per line and nothing else, so `| jq -r "."` works.

On a terminal it is a line to read instead.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, final

from logger.records import artifact_record, json_line, text_line
from transformerlm.hparams import RecordFormat


@final
class ConsoleLogger:
    """Writes every record to `stream` (stdout if None), one line at a time, flushed.

    `format` is `logging.format`: text, JSON, or (auto) text on a terminal and JSON elsewhere.

    When the reader of a pipe goes away (`| head -1`), the run goes on and its further lines are
    discarded: hours of training are worth more than the end of a pipe. stderr says so once.
    """

    def __init__(self, stream: TextIO | None = None, *, format: RecordFormat = "auto") -> None:
        self._given_stream = stream
        self._line = json_line if prints_json(self._stream, format) else text_line

    @property
    def _stream(self) -> TextIO:
        """The stream; stdout is looked up each time, since a live progress bar replaces it."""
        return sys.stdout if self._given_stream is None else self._given_stream

    def start(self, config: Mapping[str, object]) -> None:
        """Do nothing: the resolved config has its own command-line flag and file."""

    def log(self, record: Mapping[str, object]) -> None:
        """Write `record` as one line, or nothing if it has nothing to read.

        Raises:
            TypeError: a value cannot be written as JSON.
        """
        line = self._line(record)
        if not line:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except BrokenPipeError:
            _discard_output(self._stream)
            print("the reader of stdout is gone: the run goes on without console records", file=sys.stderr)

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Write one line that names the artifact and its path."""
        self.log(artifact_record(path, name=name, kind=kind))

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing: every line is flushed already, and the stream belongs to the caller."""


def prints_json(stream: TextIO, format: RecordFormat) -> bool:
    """Return whether records in this format are JSON on this stream."""
    return format == "json" or (format == "auto" and not stream.isatty())


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
