"""Out-of-memory errors of CPU or GPU as one line: memory needed, memory free, and the settings that help."""

import contextlib
import errno
import re
from pathlib import Path

_SIGNS = re.compile(
    "can't allocate memory|CUDA out of memory|MPS backend out of memory|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
    "|can't start new thread|failed to map segment|Cannot allocate memory"
)
_HINTS = {
    "transformerlm-train": "lower training.micro_batch_size (the same batch in smaller forward passes), set "
    "training.activation_checkpointing to true, or lower model.context_length or validation.batch_size",
    "transformerlm-infer": "give fewer prompts at a time, or lower sampling.max_new_tokens",
    "transformerlm-serve": "lower model.slots, or serve a model of a shorter context",
    "transformerlm-eval": "lower evaluation.batch_size or evaluation.context_length",
    "transformerlm-make-data": "lower input.workers",
    "transformerlm-train-tokenizer": "lower input.workers, or train on fewer texts",
}


def out_of_memory_message(error: BaseException, prog: str) -> str | None:
    """Return a one-line message with a hint for command `prog`; None if memory is not the cause."""
    text = str(error)
    lacks_memory = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError | ImportError) and _SIGNS.search(text) is not None)
    )
    if not lacks_memory:
        if error.__cause__ is not None:  # a compiler or worker process wraps the original error
            return out_of_memory_message(error.__cause__, prog)
        return None
    needed = re.search(r"allocate (\d[\d.]* ?(?:bytes|[KMGT]i?B))", text)
    what = f"{_readable(needed[1])} more were needed" if needed else "more was needed"
    gpu = re.search(r"of which (\d[\d.]* ?\w+) is free", text)
    there = gpu[1] if gpu else _free_memory()
    return f"out of memory: {what}, {there} free; {_HINTS.get(prog, 'close other programs, or use a larger machine')}"


def _readable(amount: str) -> str:
    number, _, unit = amount.partition(" ")
    return f"{float(number) / 2**30:.2f} GiB" if unit == "bytes" else amount


def _free_memory() -> str:
    """Return the smaller of the machine's free memory and what this process's limit leaves."""
    free: list[int] = []
    with contextlib.suppress(OSError):
        free.append(_kilobytes(Path("/proc/meminfo"), "MemAvailable"))
    with contextlib.suppress(OSError, ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit // 1024 - _kilobytes(Path("/proc/self/status"), "VmSize"))
    return f"{max(0, min(free)) / 2**20:.2f} GiB" if free else "an unknown amount is"


def _kilobytes(file: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", file.read_text(encoding="ascii"))
    return int(found[1]) if found else 0
