"""Out of memory is one line, with numbers and the settings that help, and exit code 2."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli.out_of_memory import out_of_memory_message


def raised(action: Callable[[], Any]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        action()
    return caught.value


CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 9.50 GiB of which 3.12 MiB is free."
)


@pytest.mark.parametrize(
    ("make", "needed"),
    [
        (lambda: raised(lambda: torch.empty(1 << 45)), "131072.00 GiB more were needed, "),
        (lambda: raised(lambda: np.empty(1 << 45)), "256. TiB more were needed, "),
        (lambda: MemoryError(), "more was needed, "),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), "more was needed, "),
        (lambda: RuntimeError("can't start new thread"), "more was needed, "),
        (lambda: CUDA, "20.00 MiB more were needed, 3.12 MiB free; "),
    ],
)
def test_what_was_needed_and_what_helps_is_said(make: Callable[[], BaseException], needed: str) -> None:
    for prog, hint in (("transformerlm-train", "training.micro_batch_size"), ("transformerlm-serve", "model.slots")):
        message = out_of_memory_message(make(), prog)
        assert message is not None
        assert message.startswith(f"out of memory: {needed}")
        assert hint in message
        assert "\n" not in message


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O"), ImportError("no x")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    assert out_of_memory_message(error, "transformerlm-train") is None


@pytest.mark.timeout(120)
def test_a_training_under_a_limit_ends_in_one_line(
    write_toml: Callable[..., Path], train_tables: dict[str, dict[str, Any]]
) -> None:
    # A limit a little above what the process has mapped when it begins, since builds of torch differ by gigabytes.
    code = (
        "import resource, torch, cli.train, sys\n"
        "from pathlib import Path\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (3 << 29),) * 2)\n"
        "sys.exit(cli.train.main())"
    )
    train_tables["training"] |= {"batch_size": 1 << 16, "compile": False}
    words = [sys.executable, "-c", code, "--config", str(write_toml(train_tables))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: out of memory: ")
    assert "training.micro_batch_size" in last
    assert "activation_checkpointing" in last
