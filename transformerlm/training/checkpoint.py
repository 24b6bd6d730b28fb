"""One file for any model and optimizer; the trainer's own checkpoints are folders, see `transformerlm.checkpoint`."""

import os
from pathlib import Path
from typing import IO

import torch

from transformerlm.checkpoint.folder import load_model_state
from transformerlm.checkpoint.tensor_file import encode, from_bytes, read_state
from transformerlm.utils.errors import CheckpointError
from transformerlm.utils.files import atomic_write, writing


def save_checkpoint(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: str | os.PathLike[str] | IO[bytes]
) -> None:
    """Write model, optimizer and iteration as one safetensors file to a path (atomically) or a file object."""
    pieces = encode({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration})
    if isinstance(out, str | os.PathLike):
        with writing(Path(out).parent, Path(out).name, pieces.num_bytes), atomic_write(Path(out)) as file:
            file.writelines(pieces)
    else:
        for piece in pieces:
            out.write(piece)


def load_checkpoint(
    src: str | os.PathLike[str] | IO[bytes], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load a file of `save_checkpoint` into model and optimizer; return the iteration.

    Raises `CheckpointError` if the file is missing or damaged, or does not fit the model.
    """
    if isinstance(src, str | os.PathLike):
        path = Path(src)
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such checkpoint file")
        state = read_state(path)
    else:
        state = from_bytes(src.read(), "checkpoint")
    if not isinstance(state, dict) or not {"model", "optimizer", "iteration"} <= state.keys():
        raise CheckpointError(f"{src}: is not a file that save_checkpoint wrote")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    load_model_state(model, state["model"])
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        model.load_state_dict(weights)  # all or nothing
        raise CheckpointError(f"the checkpoint does not fit the optimizer: {error}") from None
    return state["iteration"]
