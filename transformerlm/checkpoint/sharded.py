"""The tensors of a sharded checkpoint: each process has only a shard of them.

Every process writes its shards as safetensors files; the headers give their offsets in the whole tensor:

    shard-00001-model-00001-of-00002.safetensors    rank 0's rows of the weights
    shard-00001-model-00002-of-00002.safetensors    rank 0's rows of the optimizer's moments
    shard-00002-model-0000…                         rank 1's
    structure.json                                  what is not a tensor: step counts, settings, the tensors' names

They can be read with any other sharding, or as whole tensors. The files have the format of PyTorch's distributed
checkpoints (DCP) with Hugging Face storage: DCP's default storage has pickled metadata, which can run code when it is
read. DCP would not notice a flipped bit; the manifest of the folder does.
"""

# pyright: reportPrivateImportUsage=false
# (PyTorch documents these functions, but does not list them as exported.)

# DCP and DTensor are imported where they are used: they load as slowly as torch.

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transformerlm.checkpoint.tensor_file import fill, read_structure, split, tensor_names
from transformerlm.utils.errors import CheckpointError

STRUCTURE_FILE = "structure.json"
_FILE_NUMBERS = {"model": 1, "optimizer": 2}
"""Each process writes two files, which DCP calls `…-00001-of-00002` and `…-00002-of-00002`."""

Part = Literal["model", "optimizer"]

Like = Callable[[str, torch.Size], Tensor | None]
"""Maps a tensor's name and shape to a tensor whose sharding to copy, or None to load it whole on the CPU."""


def holds_pieces(folder: Path) -> bool:
    """Return whether the checkpoint in `folder` is sharded."""
    return (folder / STRUCTURE_FILE).is_file()


def write_pieces(folder: Path, *, model: Mapping[str, Tensor], optimizer: Any) -> bytes:
    """Write this process's shards into `folder`; return the content of `structure.json`, the same in all processes.

    Every process of the group calls this. `model` and `optimizer` are as for a checkpoint of one process, except that
    they contain DTensors. An error of the operating system in one process is raised in all.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    structures: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    files: dict[str, int] = {}
    for part, state in (("model", dict(model)), ("optimizer", optimizer)):
        structures[part], found = split(state)
        assert not found.keys() & tensors.keys(), "two parts have a tensor of the same name"
        tensors |= found
        files |= dict.fromkeys(found, _FILE_NUMBERS[part])
    writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer)
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from None
        raise
    return (json.dumps(structures, indent=1) + "\n").encode("utf-8")


def missing_pieces(folder: Path, num_processes: int) -> list[str]:
    """Return the names of the weight files of `num_processes` processes that are missing in `folder`."""
    names = [f"shard-{number:05d}-model-00001-of-00002.safetensors" for number in range(1, num_processes + 1)]
    return [name for name in names if not (folder / name).is_file()]


def read_pieces(folder: Path, part: Part, like: Like | None = None) -> Any:
    """Return the weights, or the rest of the state, of a checkpoint: whole on the CPU, or sharded as `like` says.

    With `like`, every process of the group calls this and reads only its shards; the checkpoint may also be one of
    a single process.
    """
    import torch.distributed.checkpoint as dcp

    if holds_pieces(folder):
        structure = json.loads((folder / STRUCTURE_FILE).read_text(encoding="utf-8"))[part]
    else:
        structure = read_structure(folder / f"{part}.safetensors")
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for name in sorted(tensor_names(structure)):
        if name not in stored:
            raise CheckpointError(f"{folder}: no piece of {name} is there; its files are not of one checkpoint")
        size, dtype = stored[name].size, stored[name].properties.dtype  # type: ignore[union-attr]
        model = like(name, size) if like is not None else None
        tensors[name] = torch.empty(size, dtype=dtype) if model is None else torch.empty_like(model, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # intended here
        dcp.load(dict(tensors), storage_reader=reader, no_dist=like is None)
    return fill(structure, tensors)
