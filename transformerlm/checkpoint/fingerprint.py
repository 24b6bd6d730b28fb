"""The fingerprint of a checkpoint: a few logits of a fixed input, which detect a change of the model's code.

Code is part of a model: with a changed layer, old weights give wrong logits without an error. So
`fingerprint.json` in a checkpoint holds

    logits                            float32 on the CPU, of 8 tokens, 32 entries of the vocabulary each
    version, commit, models_sha256    of the code, to name it when the logits differ

and loading the weights recomputes the logits.
"""

import functools
import hashlib
import importlib.metadata
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transformerlm.checkpoint.integrity import to_json
from transformerlm.checkpoint.shapes import model_without_memory
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import CheckpointError, TransformerLMWarning
from transformerlm.utils.json_file import read_json_object

FINGERPRINT_FILE = "fingerprint.json"
TOLERANCE = 1e-3
"""Largest difference by rounding, relative to the largest logit or 1; above it there is a warning."""
FAR_OFF = 3e-2
"""Relative difference above which the code computes a different model."""

_NUM_TOKENS, _NUM_ENTRIES = 8, 32
_MAX_BYTES = 1 << 20
_PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_version() -> dict[str, str | None]:
    """Return this code's version, git commit (None outside a checkout) and hash of the model's sources."""
    digest = hashlib.sha256()
    for path in sorted((_PACKAGE / "models").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        version = importlib.metadata.version("transformerlm")
    except importlib.metadata.PackageNotFoundError:  # run from its sources, not installed
        version = None
    return {"version": version, "commit": _commit(), "models_sha256": digest.hexdigest()}


def _commit() -> str | None:
    if not (_PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(_PACKAGE.parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder's owner
        return None


def probe_ids(hparams: ModelHparams) -> Tensor:
    """Return the ids (T,) of the fixed input, spread over the vocabulary."""
    assert hparams.vocab_size is not None
    positions = range(min(_NUM_TOKENS, hparams.context_length))
    return torch.tensor([(2_654_435_761 * (position + 1) >> 8) % hparams.vocab_size for position in positions])


@torch.no_grad()
def probe_logits(hparams: ModelHparams, state: Mapping[str, Tensor]) -> Tensor:
    """Return the logits (T, V) of the fixed input, float32 on the CPU, that this code computes with these weights.

    Float32 weights on the CPU are not copied. Raises `CheckpointError` if they do not fit the model.
    """
    model = model_without_memory(hparams, state)
    model.materialise("cpu")  # untouched pages are never committed
    model.load_state_dict({name: weight.to("cpu", torch.float32) for name, weight in state.items()}, assign=True)
    return model.eval()(probe_ids(hparams).unsqueeze(0))[0]


def fingerprint(logits: Tensor | None) -> bytes:
    """Return the content of `fingerprint.json` for logits (T, V) of the fixed input.

    Without logits (a model of another kind), or if they are not finite, it only identifies the code.
    """
    entries = None if logits is None or not bool(logits.isfinite().all()) else _entries(logits).tolist()
    return to_json({**code_version(), "logits": entries})


def require_same_code(folder: Path, hparams: ModelHparams, state: Mapping[str, Tensor]) -> None:
    """Compare this code's logits with the ones saved in the checkpoint `folder`; older checkpoints have none.

    Warns of a difference above `TOLERANCE`. Raises `CheckpointError` for one above `FAR_OFF`, and if the weights do not
    fit the model.
    """
    file = folder / FINGERPRINT_FILE
    if not file.exists():
        return
    saved = read_json_object(file, max_bytes=_MAX_BYTES, error=CheckpointError)
    if saved.get("logits") is None:
        return
    try:
        found = _entries(probe_logits(hparams, state))
    except CheckpointError as error:
        if saved.get("models_sha256") == code_version()["models_sha256"]:
            raise
        raise CheckpointError(f"{folder}: this checkpoint was made by other code: {error}; {_advice(saved)}") from None
    try:
        expected = torch.tensor(saved["logits"], dtype=torch.float32)
    except (TypeError, ValueError):
        expected = torch.empty(0)
    if expected.shape != found.shape:
        raise CheckpointError(f"{file}: is damaged: its logits are not {tuple(found.shape)} numbers; restore the file")
    difference, scale = (found - expected).abs().max().item(), max(1.0, expected.abs().max().item())
    if not difference <= FAR_OFF * scale:  # NaN is far off too
        raise CheckpointError(
            f"{folder}: this checkpoint was made by other code (its logits differ by {difference:.2g}); "
            f"{_advice(saved)}"
        )
    if difference > TOLERANCE * scale:
        warnings.warn(
            f"{folder}: this checkpoint's logits differ by {difference:.2g} from those of this code, more than "
            f"by rounding (tolerance {TOLERANCE * scale:.2g}); {_advice(saved)}",
            TransformerLMWarning,
            stacklevel=2,
        )


def _advice(saved: Mapping[str, Any]) -> str:
    at = f", commit {saved['commit']}" if saved.get("commit") else ""
    return f"use the code that made it (transformerlm {saved.get('version')}{at}), or train anew with this one"


def _entries(logits: Tensor) -> Tensor:
    vocab_size = logits.shape[-1]
    num_entries = min(_NUM_ENTRIES, vocab_size)
    return logits[:, torch.arange(num_entries) * vocab_size // num_entries]
