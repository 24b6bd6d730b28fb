"""Stages of a pipeline, skipped while their settings, inputs and outputs are unchanged."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.schemas import Config
from transformerlm.utils.files import sha256_file, write_json

if TYPE_CHECKING:
    from databuilder.sources import SourceFile


@dataclass(frozen=True)
class Stage:
    """A stage: its inputs and outputs, and the stamp file that records them for its last run."""

    title: str
    config: Config
    inputs: "Callable[[], Sequence[Path | SourceFile]]"
    """Input files, valid once the earlier stages have run; remote files count by size and version."""
    outputs: Callable[[], Sequence[Path]]
    stamp: Path
    run: Callable[[], int]
    """Does the work; returns an exit code."""
    is_usable: Callable[[], bool] = lambda: True
    """Whether unchanged outputs can still be used."""

    def is_up_to_date(self) -> bool:
        """Whether the last run finished with the same settings and inputs, and its outputs are unchanged."""
        is_untouched = self._stamped() == {"given": self._given(), "made": _checksums(self.outputs())}
        return is_untouched and self.is_usable()

    def is_same_work(self) -> bool:
        """Whether the last run, finished or not, had the same settings and inputs."""
        return (self._stamped() or {}).get("given") == self._given()

    def stamp_begun(self) -> None:
        """Record the settings and inputs before a run that can be resumed."""
        write_json(self.stamp, {"given": self._given(), "made": None})

    def stamp_finished(self) -> None:
        """Record the settings, inputs and outputs after a run."""
        write_json(self.stamp, {"given": self._given(), "made": _checksums(self.outputs())})

    def _stamped(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.stamp.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _given(self) -> dict[str, Any]:
        return {"config": self.config.model_dump(mode="json"), "inputs": _checksums(self.inputs())}


def _checksums(files: "Sequence[Path | SourceFile]") -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for file in files:
        path = file if isinstance(file, Path) else Path(file.name)
        if not isinstance(file, Path) and "://" in file.name:
            found[file.name] = f"{file.num_bytes} bytes, version {file.version}"
        else:
            found[str(path)] = sha256_file(path) if path.exists() else None
    return found
