"""The interface of every logging backend. It knows records and paths, and nothing of tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Logger(Protocol):
    """Takes the records of one run, in this order of calls: `start`, any number of logs, `finish`."""

    def start(self, config: Mapping[str, object]) -> None:
        """Open the backend. `config` is the run's resolved config, as nested mappings."""
        ...

    def log(self, record: Mapping[str, object]) -> None:
        """Log one flat record. Its integer `step`, if there is one, is the optimizer step it belongs to.

        Raises:
            TypeError: a value is neither JSON-like nor a scalar of numpy or torch.
        """
        ...

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Log a file or folder that the run produced, such as a checkpoint or the tokenizer's files."""
        ...

    def finish(self, exit_code: int = 0) -> None:
        """Close the backend; safe to call without `start` and more than once."""
        ...
