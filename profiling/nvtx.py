"""Named ranges on the timeline of NVIDIA's profilers (`nsys profile --trace cuda,nvtx ...`).

`TRANSFORMERLM_NVTX=1` switches them on, `TRANSFORMERLM_NVTX_LEVEL` says how much is named: `coarse`
(the default: whole phases), `fine` (each block as well) or `verbose` (each layer as well). Switched
off, or on a machine without CUDA, every function is a no-op.
"""

import contextlib
import functools
import os
from types import TracebackType
from typing import Literal, Protocol, cast, final

from transformerlm.utils.errors import ConfigError

SWITCH = "TRANSFORMERLM_NVTX"
LEVEL_SWITCH = "TRANSFORMERLM_NVTX_LEVEL"
LEVELS = ("coarse", "fine", "verbose")
Level = Literal["coarse", "fine", "verbose"]

_ON = ("1", "true", "on", "yes")
_OFF = ("", "0", "false", "off", "no")


class NvtxBackend(Protocol):
    """What is used of `torch.cuda.nvtx`."""

    def range_push(self, msg: str, /) -> object: ...
    def range_pop(self) -> object: ...
    def mark(self, msg: str, /) -> object: ...


def enabled(level: Level = "coarse") -> bool:
    """Return whether ranges of `level` are recorded.

    Raises:
        ConfigError: an environment variable has a value that is none of those above.
    """
    return _active_backend(level) is not None


def range(name: str, level: Level = "coarse") -> contextlib.AbstractContextManager[None]:
    """Return a context manager that names what happens inside it; an exception passes unchanged."""
    backend = _active_backend(level)
    return contextlib.nullcontext() if backend is None else _Range(backend, name)


def mark(name: str, level: Level = "coarse") -> None:
    """Name this moment."""
    backend = _active_backend(level)
    if backend is not None:
        backend.mark(name)


@final
class _Range:
    """Pushes on entry and pops on exit. Not a generator, so that no frame of it is in a traceback."""

    __slots__ = ("_backend", "_name")

    def __init__(self, backend: NvtxBackend, name: str) -> None:
        self._backend = backend
        self._name = name

    def __enter__(self) -> None:
        self._backend.range_push(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._backend.range_pop()


def _active_backend(level: Level) -> NvtxBackend | None:
    """Return the backend if the environment asks for `level` and the machine has one."""
    assert level in LEVELS, level
    if not _switched_on() or LEVELS.index(level) > LEVELS.index(_chosen_level()):
        return None
    return load_backend()


def _switched_on() -> bool:
    value = os.environ.get(SWITCH, "")
    if value.lower() not in _ON + _OFF:
        raise ConfigError(f"{SWITCH}: expected 1 or 0 (got {value!r})")
    return value.lower() in _ON


def _chosen_level() -> str:
    value = os.environ.get(LEVEL_SWITCH, "") or "coarse"
    if value.lower() not in LEVELS:
        raise ConfigError(f"{LEVEL_SWITCH}: expected one of {', '.join(LEVELS)} (got {value!r})")
    return value.lower()


@functools.cache
def load_backend() -> NvtxBackend | None:
    """Return torch's NVTX functions, or None without CUDA or in a build of torch without NVTX."""
    import torch

    if not torch.cuda.is_available():
        return None
    backend = cast(NvtxBackend, torch.cuda.nvtx)
    try:
        backend.mark("nvtx on")
    except RuntimeError:  # what the functions of a build without NVTX raise
        return None
    return backend
