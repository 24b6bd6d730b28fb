"""Nested Python state (an optimizer's `state_dict`, say) as one safetensors file, without pickle.

Tensors go into the file's body under their path, `optimizer.state.0.exp_avg`; everything else goes into the
header's metadata as JSON, with a placeholder where a tensor was. Tensors that share memory, such as tied
embeddings, are stored once under their first name.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from transformerlm.utils.errors import CheckpointError

_TENSOR = "__tensor__"
_PAIRS = "__pairs__"
_METADATA_KEY = "transformerlm"


def to_bytes(state: Any) -> bytes:
    """Return nested dicts, lists and tuples of tensors and JSON values as the bytes of a safetensors file.

    Raises `CheckpointError` naming the place of a value that is neither.
    """
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    structure = _strip(state, "", tensors, names)
    return save(_apart(tensors), {_METADATA_KEY: json.dumps(structure)})


def from_bytes(data: bytes, source: str) -> Any:
    """Return the state that `to_bytes` wrote; tensors are on the CPU. `source` names it in errors."""
    try:
        tensors = load(data)
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        return _fill(json.loads(header["__metadata__"][_METADATA_KEY]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: is not a file that this package wrote, or it is damaged: {error}") from None


def _strip(value: Any, path: str, tensors: dict[str, torch.Tensor], names: dict[tuple[Any, ...], str]) -> Any:
    """Move tensors from `value` into `tensors`; return what is left as JSON."""
    if isinstance(value, torch.Tensor):
        memory = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if memory not in names or not value.numel():
            while path in tensors:  # a key with a dot in it may read like a path
                path += "'"
            names[memory] = path
            tensors[path] = value.detach().cpu().contiguous()
        return {_TENSOR: names[memory]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in (_TENSOR, _PAIRS) for key in value):
            return {key: _strip(item, _join(path, key), tensors, names) for key, item in value.items()}
        # JSON keys are strings; an optimizer's are integers.
        return {_PAIRS: [[key, _strip(item, _join(path, key), tensors, names)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_strip(item, _join(path, index), tensors, names) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{path}: a {type(value).__name__} cannot be saved, only tensors and plain values")


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy the tensors whose memory lies in another one's too: safetensors refuses overlapping views."""
    apart: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return apart


def _fill(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `_strip`, but for tuples, which come back as lists."""
    if isinstance(value, list):
        return [_fill(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _PAIRS in value:
            return {key: _fill(item, tensors) for key, item in value[_PAIRS]}
        return {key: _fill(item, tensors) for key, item in value.items()}
    return value


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def read_state(path: Path) -> Any:
    """Return the state in a file that holds the bytes of `to_bytes`."""
    return from_bytes(path.read_bytes(), str(path))
