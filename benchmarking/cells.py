"""Measurements in processes of their own: what one keeps, compiles or allocates does not reach the next."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT = "timeout"


class CellError(Exception):
    """A process gave no result; the message is a status, as in a summary. Its notes hold what it said on stderr."""


def run_module(
    module: str, argument: str, *, timeout: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m MODULE ARGUMENT`; return the JSON object on the last line it prints. Raises `CellError`.

    `timeout` is in seconds; `environment` is added to this process's.
    """
    command = [sys.executable, "-m", module, argument]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | dict(environment or {}), capture_output=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise CellError(TIMEOUT) from None
    if done.returncode:
        words = done.stderr.decode("utf-8", errors="replace").strip() or "nothing on stderr"
        lines = words.splitlines()
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        error = CellError(f"failed: exit code {done.returncode}, {said}")
        error.add_note(words)
        raise error
    return json.loads(done.stdout.splitlines()[-1])


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
