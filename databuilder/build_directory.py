"""The build directories beside the outputs, and the journal by which results replace the old files.

    X.dat.build/   plan.json       the plan: sources, tokenizer, settings
                   part-000012     finished run files, one per input split, see `sorted_runs`
                   shard-00003     finished shards, with .documents and .json
                   publish.json    the journal: once it exists, only renames are left to do
    V.dat.build/   the same for validation: its shards

The directories survive any interruption, and the next build with the same plan reuses their finished files. Old data
stay readable until the new data are complete; then the old sidecars are removed first and the new ones moved last, so
that a sidecar never describes another build's files.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from transformerlm.token_files.index import TokenFileInfo, documents_path, shard_paths, sidecar_path
from transformerlm.utils.files import exclusive, sync_folder, write_json

Log = Callable[[str], None]
"""Called with a line for people to read."""

_LOCK = ".lock"


@final
class BuildDirectory:
    """The build directories of all outputs, locked by this process. See `lock_build_directory`."""

    def __init__(self, outputs: Mapping[int, Path], log: Log) -> None:
        """`outputs` are the token files by side."""
        self.folders = {side: build_folder(output) for side, output in outputs.items()}
        self._outputs = outputs
        self.log = log
        self.main = next(iter(self.folders.values()))
        """The folder with the run files."""

    def begin(self, plan: dict[str, Any]) -> bool:
        """Resume an earlier build of this plan, or remove the files of another; return whether nothing is left to do.

        The result is true if the earlier build was interrupted while it moved its results to their places.
        """
        path = self.main / "plan.json"
        before = _read_json(path)
        if self._finish_publishing() and before == plan:
            return True
        if before == plan:
            self.log(f"resuming the unfinished build in {self.main}")
            return False
        if before is not None:
            changed = ", ".join(key for key in plan if plan[key] != before.get(key))
            self.log(f"{self.main} holds a build with other settings ({changed}); starting over")
        for folder in self.folders.values():
            _clear(folder)
        write_json(path, plan, durable=False)
        return False

    def publish(self, sidecars: Mapping[int, TokenFileInfo]) -> None:
        """Move the shards and their `sidecars` to their places, and remove outdated files."""
        moves: list[tuple[str, str]] = []
        last_moves: list[tuple[str, str]] = []
        outdated: list[Path] = []
        for side, info in sidecars.items():
            output, folder = self._outputs[side].absolute(), self.folders[side].absolute()
            files = shard_paths(output, info)
            for number, file in enumerate(files):
                source = folder / f"shard-{number:05d}"
                moves.append((str(source), str(file)))
                moves.append((str(documents_path(source)), str(documents_path(file))))
            write_json(folder / "sidecar.json", info.model_dump())
            last_moves.append((str(folder / "sidecar.json"), str(sidecar_path(output))))
            outdated += set(_files_of_sidecar(output)) - {*files, *map(documents_path, files)}
        record = {"moves": moves, "last_moves": last_moves, "outdated": sorted(map(str, outdated))}
        write_json(self.main / "publish.json", record)
        self._finish_publishing()

    def _finish_publishing(self) -> bool:
        """Carry out the rest of the journal `publish.json`; return whether there is one."""
        record = _read_json(self.main / "publish.json")
        if record is None:
            return False
        last_moves = [(Path(source), Path(target)) for source, target in record["last_moves"]]
        for source, target in last_moves:
            if source.exists():
                target.unlink(missing_ok=True)
        _move([(Path(source), Path(target)) for source, target in record["moves"]])
        _move(last_moves)
        for path in record["outdated"]:
            Path(path).unlink(missing_ok=True)
        (self.main / "publish.json").unlink()
        return True

    def discard(self) -> None:
        """Remove the folders and their content."""
        for folder in self.folders.values():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock_build_directory(outputs: Mapping[int, Path], log: Log) -> Iterator[BuildDirectory]:
    """Lock the build directories of `outputs`, the token files by side, while the context is open.

    Raises `DataError` if another process has locked one, or a folder is not writable.
    """
    directory = BuildDirectory(outputs, log)
    with contextlib.ExitStack() as stack:
        for folder in directory.folders.values():
            check = stack.enter_context(exclusive(folder))
            check()
        yield directory


def build_folder(output: Path) -> Path:
    """Return the folder in which the token file `output` is built."""
    return output.with_name(output.name + ".build")


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename the files that are not renamed yet, and flush their folders."""
    for source, target in moves:
        if source.exists():
            source.replace(target)
    for folder in {target.parent for _, target in moves}:
        sync_folder(folder)


def _files_of_sidecar(output: Path) -> list[Path]:
    """Return the files that the current sidecar of a token file describes."""
    try:
        info = TokenFileInfo.model_validate(_read_json(sidecar_path(output)))
    except ValidationError:
        return []
    files = shard_paths(output, info)
    return [*files, *(documents_path(file) for file in files if info.shards)]
