"""The folders beside the outputs in which a build is at work, and how its results take their place.

    X.dat.build/   plan.json       what is built: sources, tokenizer, settings
                   part-000012     spools that are finished, see `spool`
                   shard-00003     shards that are finished, with .documents and .json
                   publish.json    from here on, nothing but renaming is left to do
    V.dat.build/   the same for validation: its shards

Whatever stops a build, the folders stay, and the next one with the same plan takes from them what is finished. Old data
are readable until the new ones are complete; then their sidecars go first and the new sidecars come last, so that no
sidecar ever describes files that are not its own.
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

Say = Callable[[str], None]
"""Told a line for people."""

_LOCK = ".lock"


@final
class Workplace:
    """The folders of a build's outputs, held by this process. See `at_work`."""

    def __init__(self, outputs: Mapping[int, Path], say: Say) -> None:
        """`outputs` are the token files of the sides."""
        self.folders = {side: work_folder(output) for side, output in outputs.items()}
        self._outputs = outputs
        self.say = say
        self.main = next(iter(self.folders.values()))
        """The folder of spools."""

    def begin(self, plan: dict[str, Any]) -> bool:
        """Go on with what an earlier build of this plan left, or clear it away; return whether nothing is left to do.

        That is so if the earlier one was stopped while it moved its results to their places.
        """
        path = self.main / "plan.json"
        before = _read_json(path)
        if self._finish_publishing() and before == plan:
            return True
        if before == plan:
            self.say(f"going on with what is finished in {self.main}")
            return False
        if before is not None:
            changed = ", ".join(key for key in plan if plan[key] != before.get(key))
            self.say(f"what is in {self.main} is of another build (not the same: {changed}); beginning afresh")
        for folder in self.folders.values():
            _clear(folder)
        write_json(path, plan, durable=False)
        return False

    def publish(self, sidecars: Mapping[int, TokenFileInfo]) -> None:
        """Move the shards to their places, with `sidecars` to describe them, and remove what is outdated."""
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
        """Do what `publish.json` says, or what is left of it if a build was stopped meanwhile; whether there is one."""
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
        """Remove the folders with all that they hold."""
        for folder in self.folders.values():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def at_work(outputs: Mapping[int, Path], say: Say) -> Iterator[Workplace]:
    """Hold the folders of the outputs, which are the token files of the sides, while the context is open.

    Raises `DataError` if another process does, or a folder cannot be written to.
    """
    workplace = Workplace(outputs, say)
    with contextlib.ExitStack() as stack:
        for folder in workplace.folders.values():
            check = stack.enter_context(exclusive(folder))
            check()
        yield workplace


def work_folder(output: Path) -> Path:
    """Return the folder in which the token file `output` is built."""
    return output.with_name(output.name + ".build")


def _read_json(path: Path) -> Any:
    """Return what a file of this module holds; None if it is not there, or not whole."""
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
    """Rename files, those that are not renamed yet, and see to it that the disk knows."""
    for source, target in moves:
        if source.exists():
            source.replace(target)
    for folder in {target.parent for _, target in moves}:
        sync_folder(folder)


def _files_of_sidecar(output: Path) -> list[Path]:
    """Return the files that the present sidecar of a token file describes."""
    try:
        info = TokenFileInfo.model_validate(_read_json(sidecar_path(output)))
    except ValidationError:
        return []
    files = shard_paths(output, info)
    return [*files, *(documents_path(file) for file in files if info.shards)]
