"""The check of an export's output path."""

from pathlib import Path

from transformerlm.utils.errors import ConfigError


def check_output(out: Path, checkpoint: Path | None = None) -> None:
    """Raise `ConfigError` if `out` exists, or is inside the folder `checkpoint`.

    An existing empty folder is accepted, unless the output is a file.
    """
    if not out.name:
        raise ConfigError(f"{out}: has no name of its own; give that of a new file or folder as --out")
    for parent in out.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{out}: cannot be created: {parent} is not a folder; choose another --out")
    is_empty = out.suffix != ".gguf" and out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not is_empty:
        raise ConfigError(f"{out}: already exists, and is not overwritten; choose another --out, or remove it")
    if checkpoint is not None and out.resolve().is_relative_to(checkpoint.resolve()):
        raise ConfigError(f"{out}: is inside the checkpoint {checkpoint}, which is not changed; choose another --out")
