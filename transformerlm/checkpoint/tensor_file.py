"""Nested Python state (such as an optimizer's `state_dict`) as one safetensors file, without pickle.

Tensors go into the file's body under their path, `optimizer.state.0.exp_avg`; everything else goes into the
header's metadata as JSON, with a placeholder where a tensor was. Tensors that share memory, such as tied
embeddings, are stored once under their first name.

The safetensors library reads the files but does not write them, because it serialises into a single bytes
object. The format is a header and the tensors' memory, so the memory is written to disk without a copy.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from transformerlm.distributed.dtensor import local_piece
from transformerlm.utils.errors import CheckpointError

_TENSOR = "__tensor__"
_PAIRS = "__pairs__"
_TUPLE = "__tuple__"
_METADATA_KEY = "transformerlm"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip
"""Names of the types in a safetensors header."""


@dataclass(frozen=True)
class Encoded:
    """A safetensors file to write: iterate over it for its bytes, piece by piece.

    The pieces are the tensors' own memory (copied one tensor at a time from another device), so a checkpoint
    is never copied as a whole. The tensors must not change until the iteration ends.
    """

    header: bytes
    tensors: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self.header
        for tensor in self.tensors:
            yield tensor_bytes(tensor)


def encode(state: Any) -> Encoded:
    """Return nested dicts, lists and tuples of tensors and JSON values as a safetensors file.

    Raises `CheckpointError` with the path of a value that is neither.
    """
    structure, tensors = split(state)
    header, names = safetensors_header(tensors, {_METADATA_KEY: json.dumps(structure)})
    return Encoded(header, tuple(tensors[name] for name in names))


def safetensors_header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return the beginning of a safetensors file, and the names of the tensors in the order of their bytes.

    Only types and shapes of the tensors are used, so they may be on the meta device.
    """
    # The format: the header's length, the header as JSON padded with spaces, the tensors without gaps. The
    # widest types come first, so that each tensor is aligned.
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def tensors_header(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[str]]:
    """Return `safetensors_header` for `encode` of this flat dict, whose tensors are written later."""
    structure = {name: {_TENSOR: name} for name in tensors}
    return safetensors_header(tensors, {_METADATA_KEY: json.dumps(structure)})


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor as in a file: its own memory, if it is on the CPU and contiguous."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def to_bytes(state: Any) -> bytes:
    """Return `encode(state)` as one piece."""
    return b"".join(encode(state))


def from_bytes(data: bytes, source: str) -> Any:
    """Return the state that `to_bytes` wrote; tensors are on the CPU. `source` names it in errors."""
    try:
        tensors = load(data)
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        return fill(json.loads(header["__metadata__"][_METADATA_KEY]), tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{source}: is not a file that this package wrote, or it is damaged: {error}") from None


def split(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return `state` as JSON values with placeholders for its tensors, and the tensors by name.

    Raises `CheckpointError` with the path of a value that is neither a tensor nor a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _strip(state, "", tensors, {}), tensors


def tensor_names(structure: Any) -> set[str]:
    """Return the names of the tensors in a result of `split`."""
    if isinstance(structure, list):
        return set().union(*map(tensor_names, structure))
    if isinstance(structure, dict):
        if _TENSOR in structure:
            return {structure[_TENSOR]}
        return set().union(*map(tensor_names, structure.values()))
    return set()


def _strip(value: Any, path: str, tensors: dict[str, torch.Tensor], names: dict[tuple[Any, ...], str]) -> Any:
    """Move tensors from `value` into `tensors`; return the rest as JSON values."""
    if isinstance(value, torch.Tensor):
        memory = (local_piece(value).data_ptr(), value.shape, value.stride(), value.dtype)
        if memory not in names or not local_piece(value).numel():
            while path in tensors:  # a key that contains a dot may look like a path
                path += "'"
            if value.dtype not in _DTYPES:
                raise CheckpointError(f"{path}: a tensor of {value.dtype} cannot be saved")
            names[memory] = path
            tensors[path] = value.detach()
        return {_TENSOR: names[memory]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in (_TENSOR, _PAIRS, _TUPLE) for key in value):
            return {key: _strip(item, _join(path, key), tensors, names) for key, item in value.items()}
        # JSON keys are strings; an optimizer's are integers.
        return {_PAIRS: [[key, _strip(item, _join(path, key), tensors, names)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_strip(item, _join(path, index), tensors, names) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{path}: a {type(value).__name__} cannot be saved, only tensors and plain values")


def fill(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `split`. Files of format 1 hold lists instead of tuples."""
    if isinstance(value, list):
        return [fill(item, tensors) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _PAIRS in value:
            return {key: fill(item, tensors) for key, item in value[_PAIRS]}
        if _TUPLE in value:
            return tuple(fill(item, tensors) for item in value[_TUPLE])
        return {key: fill(item, tensors) for key, item in value.items()}
    return value


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def read_state(path: Path) -> Any:
    """Return the state in a file that holds the bytes of `to_bytes`."""
    return from_bytes(path.read_bytes(), str(path))


def read_structure(path: Path) -> Any:
    """Return the JSON values of `split` from such a file, without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[_METADATA_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a file that this package wrote, or it is damaged: {error}") from None
