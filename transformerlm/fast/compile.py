"""`torch.compile`: when to use it, where to cache its results, and how to avoid recompilation.

Compiled                                          for these shapes
    each block's forward and backward pass        the training batch's; blocks are alike, so all share one compilation
    the loss of a chunk of logits                 a chunk's
    AdamW's update of a parameter                 a vector of any length

Everything else is a product of large matrices, or runs once per step. The model is not compiled as one graph, in which
each block would be compiled separately.

A compiled function is recompiled when a type, a shape or a Python number among its arguments changes.
So the learning rate is a tensor, validation batches have the training batch's shape, and gradients are
enabled in validation too (but not computed).
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from transformerlm.distributed.group import World
from transformerlm.utils.cache_folder import user_cache_folder
from transformerlm.utils.errors import ConfigError

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

# A run is compiled if its arithmetic would keep the device busy for this long. Measured on two cores in float32:
# compilation takes 40 seconds, 10 with a warm cache, and a step then takes about 20 % less time.
LONG_ENOUGH_SECONDS = 300
# Throughput of a step without compilation, FLOP/s: per thread on a CPU (measured: 7 to 8e10 in float32 with AVX-512),
# in total on a GPU. If this is 2× too low, a run that barely repays compilation is compiled.
_CPU_THREAD_FLOPS = 6e10
_CUDA_FLOPS = 2e14


@dataclass(frozen=True)
class Compilation:
    """Whether a run is compiled; if it should be but cannot, `problem` says why."""

    active: bool
    problem: str = ""


def decide(setting: Literal["auto"] | bool, device: torch.device, run_flops: float) -> Compilation:
    """Return whether to compile a run of `run_flops` operations on `device`.

    The answer to `auto` depends on settings and device alone, not on a clock: a resumed run must get the same.
    Raises `ConfigError` if `setting` is True and the machine cannot.
    """
    if setting is False or (setting == "auto" and not _is_long(device, run_flops)):
        return Compilation(active=False)
    if setting is True:
        require_compiler(device, setting="training.compile")
        return Compilation(active=True)
    problem = _find_problem(device)
    return Compilation(active=not problem, problem=problem)


def decide_together(
    setting: Literal["auto"] | bool, device: torch.device, run_flops: float, world: World
) -> Compilation:
    """Return the same decision in all processes of `world`: compile if each of them would (see `decide`).

    Compiled steps differ from eager ones in the collectives around them, and in their last digits.
    """
    with world.together():
        own = decide(setting, device, run_flops)
    someone_does_not = world.agree(int(not own.active)) > 0
    if own.active and someone_does_not:
        return Compilation(active=False, problem="another process of this run does not compile")
    return own


def require_compiler(device: torch.device, *, setting: str) -> None:
    """Raise `ConfigError` if this machine cannot compile for `device`; `setting` is what asked for it."""
    if problem := _find_problem(device):
        raise ConfigError(f"{setting}: is true, but {problem}; install what is missing, or set it to false")


def _find_problem(device: torch.device) -> str:
    problem = _missing_compiler(device)
    if not problem:
        _choose_cache_folder()
        problem = _failure()
    return problem


def _is_long(device: torch.device, run_flops: float) -> bool:
    if device.type == "cpu":
        return run_flops > LONG_ENOUGH_SECONDS * _CPU_THREAD_FLOPS * torch.get_num_threads()
    return device.type == "cuda" and run_flops > LONG_ENOUGH_SECONDS * _CUDA_FLOPS


def _missing_compiler(device: torch.device) -> str:
    """Return an obvious problem, without loading the compiler, which takes seconds."""
    command = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not (shutil.which(command) or shutil.which("clang++")):
        return f"there is no C++ compiler here ({command})"
    return ""


def _failure() -> str:
    """Compile and run one line; return the problem, if any. A run that compiles needs this start-up time anyway."""
    from torch._dynamo.exc import TorchDynamoException  # loading it takes seconds

    # A CUDA build of torch prints an irrelevant warning on a machine without CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(8))
    except (TorchDynamoException, OSError) as error:
        return f"torch.compile does not work here ({str(error).strip().splitlines()[0]})"
    return ""


def _choose_cache_folder() -> None:
    """Keep compiled code in the user's cache folder, unless the user has configured another folder.

    The default is a temporary folder, which does not survive a restart of the machine.
    """
    folder = user_cache_folder()
    if CACHE_VARIABLE in os.environ or folder is None:
        return
    try:
        (folder / "inductor").mkdir(parents=True, exist_ok=True)
    except OSError:  # no writable cache folder: use torch's temporary folder
        return
    if os.access(folder / "inductor", os.W_OK):
        os.environ[CACHE_VARIABLE] = str(folder / "inductor")


def compile_fixed_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled for the shapes it is first called with; other shapes recompile it."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def compile_any_length(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled once for vectors of all lengths."""
    return torch.compile(function, dynamic=True, fullgraph=True)
