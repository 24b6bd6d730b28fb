"""The safetensors files of a Hugging Face folder; all tensors are known before any of them is read.

    model.safetensors                                   one file
    model.safetensors.index.json                        or an index, {"weight_map": {name of tensor: file}}, and
    model-00001-of-00002.safetensors, …                 the files it names

The headers give each tensor's type and shape, and the safetensors library checks them against the file's size. No
pickle is read. The index may only name files in its own folder; they may be links, as in the cache of Hugging Face's
hub.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from transformerlm.utils.dtypes import dtype_name
from transformerlm.utils.errors import InteropError, shown
from transformerlm.utils.json_file import read_json_object

T = TypeVar("T")

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 1 << 26
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The supported types of weights, by their names in a header."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NAMED = 5


class StoredTensor(NamedTuple):
    """A tensor's entry in a header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightFiles:
    """The tensors in the files of a folder, by name."""

    folder: Path
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path) -> "WeightFiles":
        """Read the headers of the files; raise `InteropError` if a file is missing, damaged or a pickle."""
        if (folder / SINGLE_FILE).is_file():
            return cls(folder, _header(folder / SINGLE_FILE))
        if (folder / INDEX_FILE).is_file():
            return cls(folder, _headers(folder))
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickled:
            raise InteropError(
                f"{folder}: holds no safetensors, only {pickled[0]}, a pickle, which runs code when it is read; "
                "convert it where you trust it: load it with transformers, then save_pretrained(folder)"
            )
        raise InteropError(f"{folder}: has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} exists")

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in its stored type; it may share the file's memory map."""
        return _read(self.tensors[name].file, lambda file: file.get_tensor(name))


def _read(path: Path, use: Callable[[Any], T]) -> T:
    if not path.is_file():
        raise InteropError(f"{path}: is missing, or is not a file; download the whole folder again")
    try:
        with safe_open(path, framework="pt") as file:
            return use(file)
    except (SafetensorError, OSError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InteropError(f"{path}: is damaged, or not a safetensors file ({problem}); download it again") from None


def _header(path: Path) -> dict[str, StoredTensor]:
    def look(file: Any) -> dict[str, StoredTensor]:
        found = {}
        for name in file.keys():  # noqa: SIM118 (no dict)
            part = file.get_slice(name)
            found[name] = StoredTensor(path, str(part.get_dtype()), tuple(part.get_shape()))
        return found

    return _read(path, look)


def _headers(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    listed = read_json_object(index, max_bytes=MAX_INDEX_BYTES, error=InteropError).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InteropError(f"{index}: weight_map: must name a file for each tensor; download the file again")
    tensors: dict[str, StoredTensor] = {}
    for name in sorted({_file_name(index, name) for name in listed.values()}):
        header = _header(folder / name)
        for tensor in header:
            if tensor in tensors:
                raise InteropError(f"{folder / name}: {shown(tensor)} is in {tensors[tensor].file.name} as well")
        tensors |= header
    for tensor, name in listed.items():
        if tensor not in tensors or tensors[tensor].file.name != name:
            raise InteropError(f"{folder / name}: has no {shown(tensor)}, although {INDEX_FILE} lists it")
    return tensors


def _file_name(index: Path, name: Any) -> str:
    """Return `name` if it is the plain name of a safetensors file; raise `InteropError` otherwise."""
    plain = isinstance(name, str) and len(name) < 256 and name.isprintable() and not set(name) & set("/\\:")
    if not plain or not name.endswith(".safetensors") or name.startswith("."):
        raise InteropError(f"{index}: weight_map: {shown(name)} is not the name of a .safetensors file in the folder")
    return name


def require_tensors(files: WeightFiles, expected: dict[str, torch.Size]) -> None:
    """Raise `InteropError` unless the files have exactly these tensors, with these shapes and supported types.

    Only the headers are used.
    """
    missing = [name for name in expected if name not in files.tensors]
    if missing:
        raise InteropError(f"{files.folder}: the weights lack {_listed(missing)}, which config.json requires")
    unexpected = sorted(files.tensors.keys() - expected.keys())
    if unexpected:
        raise InteropError(f"{files.folder}: the weights include {_listed(unexpected)}, which do not fit config.json")
    for name, shape in expected.items():
        stored = files.tensors[name]
        if stored.dtype not in DTYPES:
            raise InteropError(
                f"{stored.file}: {name} is of type {stored.dtype}; weights of the types {', '.join(DTYPES)} can be "
                "imported, quantised ones cannot"
            )
        if stored.shape != tuple(shape):
            raise InteropError(
                f"{stored.file}: {name} has the shape {shown(list(stored.shape))}, "
                f"where config.json requires {list(shape)}"
            )


def require_range(name: str, weight: torch.Tensor, dtype: torch.dtype, *, not_finite: str, too_large: str) -> None:
    """Raise `InteropError` if a weight has values that are not finite, or not finite in `dtype`; with advice."""
    largest = weight.abs().max()
    if bool(largest.to(dtype).isfinite()):
        return
    if not bool(largest.isfinite()):
        raise InteropError(f"{name} holds numbers that are not finite; {not_finite}")
    raise InteropError(
        f"{name} has numbers up to {largest.item():.3g}, too large for {dtype_name(dtype)}, which ends at "
        f"{torch.finfo(dtype).max:.5g}; {too_large}"
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(shown, names[:_NAMED])) + (f" and {more:,} more" if more > 0 else "")
