"""Where an export may go."""

from pathlib import Path

from transformerlm.utils.errors import ConfigError


def check_output(out: Path, checkpoint: Path | None = None) -> None:
    """Raise `ConfigError` if something is at `out`, or it would lie in the folder of the checkpoint, if that is given.

    An empty folder is nothing, but where a file is to be.
    """
    if not out.name:
        raise ConfigError(f"{out}: has no name of its own; give that of a new file or folder as --out")
    for parent in out.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{out}: cannot be made, for {parent} is no folder; choose another --out")
    is_empty = out.suffix != ".gguf" and out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not is_empty:
        raise ConfigError(f"{out}: is there already, and nothing is overwritten; choose another --out, or remove it")
    if checkpoint is not None and out.resolve().is_relative_to(checkpoint.resolve()):
        raise ConfigError(f"{out}: lies inside the checkpoint {checkpoint}, which stays as it is; choose another --out")
