"""The checkpoints of a run of several processes: the first owns the folder, all of them read and write."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformerlm.checkpoint.fingerprint import FINGERPRINT_FILE
from transformerlm.checkpoint.folder import Checkpoint, CheckpointStore
from transformerlm.checkpoint.integrity import DamagedCheckpointError, FolderWriter
from transformerlm.checkpoint.sharded import STRUCTURE_FILE, missing_pieces, read_pieces, write_pieces
from transformerlm.checkpoint.tensor_file import split
from transformerlm.distributed.sharding import Parallelism
from transformerlm.utils.errors import DataError


@dataclass(frozen=True)
class GroupCheckpointStore:
    """A `CheckpointStore` shared by several processes; all call its methods, in the same order.

    The first process writes everything that is not sharded, as a single process would; each process writes its
    own shards. An error of one process is raised in all.
    """

    store: CheckpointStore
    parallelism: Parallelism

    @property
    def folder(self) -> Path:
        """As in `CheckpointStore`."""
        return self.store.folder

    def prepare(self, num_bytes: int) -> None:
        """As in `CheckpointStore`."""
        self.parallelism.world.from_first(lambda: self.store.prepare(num_bytes))

    def clean(self) -> None:
        """As in `CheckpointStore`."""
        self.parallelism.world.from_first(self.store.clean)

    def newest(self, damaged: list[DamagedCheckpointError] | None = None) -> Checkpoint | None:
        """As in `CheckpointStore`; the first process verifies, and only its list gets the damaged checkpoints."""

        def find() -> Path | None:
            newest = self.store.newest(damaged)
            return None if newest is None else newest.path

        path = self.parallelism.world.from_first(find)
        return None if path is None else Checkpoint(path)

    def set_aside(self, folder: Path) -> Path:
        """As in `CheckpointStore`; called by the process that found the damage."""
        return self.store.set_aside(folder)

    def save(self, *, model: Mapping[str, Any], optimizer: Any, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `state["step"]`, as the store's `save` does; return its folder."""
        world = self.parallelism.world
        if not self.parallelism.sharded:
            return world.from_first(lambda: self.store.save(model=model, optimizer=optimizer, state=state))
        num_bytes = sum(tensor.nbytes for part in (model, optimizer) for tensor in split(part)[1].values())
        with contextlib.ExitStack() as stack:
            writers: list[FolderWriter] = []

            def begin() -> Path:
                writers.append(stack.enter_context(self.store.new(state, num_bytes=num_bytes)))
                return writers[0].folder

            def finish() -> Path:
                missing = missing_pieces(writers[0].folder, world.size)
                if missing:
                    raise DataError(
                        f"{writers[0].folder}: {missing[0]} is not there, which another machine wrote; "
                        "set training.runs_dir to a folder on a file system that all machines share"
                    )
                writers[0].write(STRUCTURE_FILE, [structure])
                if self.store.hparams is not None:  # by one process, from the files: no process has all shards
                    whole = read_pieces(writers[0].folder, "model")
                    writers[0].write(FINGERPRINT_FILE, [self.store.fingerprint(whole)])
                stack.close()  # hashes the files, gives the folder its name
                return self.store.path(state["step"])

            structure = write_pieces(world.from_first(begin), model=model, optimizer=optimizer)
            return world.from_first(finish)
