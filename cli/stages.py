"""Stages of a longer job that are skipped while their settings, inputs and outputs are as they were left."""

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
    """A step of the way: what it is given and makes, and the stamp file that says what it was last given and made."""

    title: str
    config: Config
    inputs: "Callable[[], Sequence[Path | SourceFile]]"
    """Files, when the stages before have run; a remote one counts by what its server says of it."""
    outputs: Callable[[], Sequence[Path]]
    stamp: Path
    run: Callable[[], int]
    """Does the work; returns an exit code."""
    is_usable: Callable[[], bool] = lambda: True
    """Whether the outputs, untouched, can still be used."""

    def is_up_to_date(self) -> bool:
        """Whether the stage's last run finished, with the same settings and inputs, and its outputs are untouched."""
        is_untouched = self._stamped() == {"given": self._given(), "made": _checksums(self.outputs())}
        return is_untouched and self.is_usable()

    def is_same_work(self) -> bool:
        """Whether the stage was last begun, perhaps not finished, with the same settings and inputs."""
        return (self._stamped() or {}).get("given") == self._given()

    def stamp_begun(self) -> None:
        """Note what the stage is given, before a run that could be continued."""
        write_json(self.stamp, {"given": self._given(), "made": None})

    def stamp_finished(self) -> None:
        """Note what the stage was given and made, after a run."""
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
