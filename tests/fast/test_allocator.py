"""Freed memory is kept, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from transformerlm.fast import allocator

FAULTS = """
import resource, sys
from transformerlm.fast.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(64 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(20)  # aligned blocks move a few times before a place is free that they fit into
print(faults(5))
"""

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")


@on_glibc
def test_a_block_that_is_taken_again_costs_no_page_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")  # so that pages are counted one by one
    counts = {}
    for word in ("keep", "leave"):
        command = [sys.executable, "-c", FAULTS, word]
        counts[word] = int(subprocess.run(command, capture_output=True, check=True, timeout=100).stdout)
    assert counts["leave"] > 5 * 100  # 16,384 pages of 4 KB a block, or some dozens of huge ones
    assert counts["keep"] < counts["leave"] / 10


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not allocator.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not allocator.keep_freed_memory()
