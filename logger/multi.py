"""Several backends at once."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from logger.base import Logger


@final
class MultiLogger:
    """Passes every call on to each of `loggers`, in order."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = tuple(loggers)

    def start(self, config: Mapping[str, object]) -> None:
        """Start each logger."""
        for logger in self._loggers:
            logger.start(config)

    def log(self, record: Mapping[str, object]) -> None:
        """Log `record` with each logger."""
        for logger in self._loggers:
            logger.log(record)

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Log the artifact with each logger."""
        for logger in self._loggers:
            logger.log_artifact(path, name=name, kind=kind)

    def finish(self, exit_code: int = 0) -> None:
        """Finish each logger, the later ones too if one of them raises."""
        with contextlib.ExitStack() as stack:
            for logger in reversed(self._loggers):
                stack.callback(logger.finish, exit_code)
