"""NVTX ranges around a model's modules, attached from outside and taken off again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from profiling import nvtx

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


@final
class NvtxHandle:
    """Takes the ranges off the model again, by `remove` or at the end of a `with` block."""

    def __init__(self, handles: "list[RemovableHandle]") -> None:
        self._handles = handles

    def remove(self) -> None:
        """Remove every hook; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "NvtxHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach_nvtx(model: "nn.Module") -> NvtxHandle:
    """Put a range around every forward of `model` and, by level, of the modules in it.

    `coarse`: the model as a whole, under its class name. `fine`: the members of every `ModuleList`,
    which are a Transformer's blocks, under their path in the model. `verbose`: every module without
    children as well, except inside a compiled block, whose operators are fused across them. The level is
    read once, here; where NVTX is off, no hook is registered.

    Raises:
        ConfigError: the environment variables of `profiling.nvtx` have unknown values.
    """
    backend = nvtx.load_backend() if nvtx.enabled() else None
    if backend is None:
        return NvtxHandle([])
    handles: list[RemovableHandle] = []
    for name, module in _named_modules(model):
        span = _Span(backend, name)
        # First of the pre-hooks, so that this range opens before any other hook can raise; always
        # called, so that it closes when the forward raises.
        handles.append(module.register_forward_pre_hook(span.open, prepend=True))
        handles.append(module.register_forward_hook(span.close, always_call=True))
    return NvtxHandle(handles)


def _named_modules(model: "nn.Module") -> "Iterator[tuple[str, nn.Module]]":
    from torch import nn

    blocks = {child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module.children()}
    fine, verbose = nvtx.enabled("fine"), nvtx.enabled("verbose")
    for path, module in model.named_modules():
        is_leaf = not any(True for _ in module.children())
        if module is model:
            yield type(model).__name__, module
        elif (fine and module in blocks) or (verbose and is_leaf):
            yield path, module


@final
class _Span:
    """The range of one module. It counts how often it is open, for one module may call itself."""

    def __init__(self, backend: nvtx.NvtxBackend, name: str) -> None:
        from torch.compiler import is_compiling

        self._is_compiling = is_compiling
        self._backend = backend
        self._name = name
        self._open = 0

    def open(self, _module: "nn.Module", _args: object) -> None:
        if self._is_compiling():
            return
        self._backend.range_push(self._name)
        self._open += 1

    def close(self, _module: "nn.Module", _args: object, _output: object) -> None:
        if not self._is_compiling() and self._open:  # 0 if another pre-hook raised before `open` was called
            self._open -= 1
            self._backend.range_pop()
