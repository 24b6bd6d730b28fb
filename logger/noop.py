"""The backend that forgets everything."""

from collections.abc import Mapping
from pathlib import Path
from typing import final


@final
class NoopLogger:
    """Satisfies `Logger` and does nothing."""

    def start(self, config: Mapping[str, object]) -> None:
        """Do nothing."""

    def log(self, record: Mapping[str, object]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""
