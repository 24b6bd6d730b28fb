"""`metrics.jsonl` in the run folder: the run's own record, there whatever the other backends are."""

import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import final

from logger.records import artifact_record, json_line
from transformerlm.utils.errors import DataError
from transformerlm.utils.files import atomic_write, free_space, size_text


@final
class JsonlLogger:
    """Appends every record to the file at `path`, each as one line handed to the system at once.

    With `resume_step` the run continues after that step: `start` first drops what a killed run
    wrote beyond it (`truncate_after_step`), so that the file reads as one uninterrupted run. Pass 0
    for a run that begins again in the same folder, None to append to whatever is there.
    """

    def __init__(self, path: Path | str, *, resume_step: int | None = None) -> None:
        self._path = Path(path)
        self._resume_step = resume_step
        self._file: FileIO | None = None

    def start(self, config: Mapping[str, object]) -> None:  # noqa: ARG002
        """Repair the file's end, drop what lies after the step to resume from, and open it.

        Raises:
            DataError: the file cannot be opened for writing.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            truncate_after_step(self._path, self._resume_step)
            self._file = FileIO(self._path, "a")
        except OSError as error:
            raise self._write_error(error) from error

    def log(self, record: Mapping[str, object]) -> None:
        """Append `record` as one line of JSON.

        Raises:
            TypeError: a value cannot be written as JSON.
            DataError: the disk is full, or the file is otherwise not writable.
        """
        assert self._file is not None, "log() needs start() first"
        line = memoryview(f"{json_line(record)}\n".encode("ascii"))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.close()
            self._file = None  # so that `finish` does not fail too, of something less telling
            raise self._write_error(error) from error

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Append one line that names the artifact and its path."""
        self.log(artifact_record(path, name=name, kind=kind))

    def finish(self, exit_code: int = 0) -> None:  # noqa: ARG002
        """Flush the file to disk and close it."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                with file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> DataError:
        free = size_text(free_space(self._path.parent)[1])
        return DataError(
            f"{self._path}: cannot write the run's records: {error.strerror} ({free} free); "
            "make the folder writable or free some space, then start the run again"
        )


def truncate_after_step(path: Path, step: int | None) -> None:
    """Cut `path` before its first record of a later step, and drop lines that are not whole.

    Everything from that record on goes, records without a step too, for the file is in order of
    time. A line is not whole if the process or the machine died while it was written. With `step`
    None only those lines go. The file is replaced atomically, and only if something changes.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    kept = b"".join(_whole_lines(content, step))
    if kept != content:
        with atomic_write(path) as file:
            file.write(kept)


def _whole_lines(content: bytes, last_step: int | None) -> Iterator[bytes]:
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            continue
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            continue
        step = record.get("step")
        if last_step is not None and isinstance(step, int) and step > last_step:
            return
        yield line
