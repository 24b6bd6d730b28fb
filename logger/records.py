"""Records as JSON lines: scalars of any library become numbers, and every parser can read the result.

JSON has no NaN and no infinities. They are written as the strings "NaN", "Infinity" and "-Infinity",
which Python's `float()` reads back and which are not mistaken for a missing value, as `null` would be.
Text outside ASCII is escaped, so that a line survives any locale of the terminal.
"""

import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class _HoldsScalar(Protocol):
    """A zero-dimensional tensor or array of torch or numpy, recognised without importing either."""

    def item(self) -> object: ...


def to_plain(value: object) -> object:
    """Return `value` built from dict, list, str, int, float, bool and None only.

    Raises:
        TypeError: it holds something else, for example a tensor of more than one element.
    """
    match value:
        case None | bool() | str():
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value)
        case Mapping():
            return {_key(key): to_plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [to_plain(entry) for entry in value]
        case _HoldsScalar():
            return to_plain(_item(value))
    raise TypeError(f"cannot log a value of type {type(value).__name__}: {value!r:.100}")


def json_line(record: Mapping[str, object]) -> str:
    """Return `record` as one line of strict JSON in ASCII, without the line end.

    Raises:
        TypeError: a value cannot be written as JSON.
    """
    return json.dumps(_without_nonfinite(to_plain(record)), allow_nan=False)


_SHOWN = {
    "metrics.loss": "loss {:.4f}",
    "metrics.lr": "lr {:.2e}",
    "metrics.grad_l2_norm": "grad norm {:.3f}",
    "metrics.tokens_per_second": "{:,.0f} tokens/s",
    "metrics.valid_loss": "validation loss {:.4f}",
    "metrics.valid_bits_per_byte": "{:.4f} bits per byte",
}


def text_line(record: Mapping[str, object]) -> str:
    """Return a record as a line to read, "" if it holds nothing for one: a training step, a validation, a checkpoint,
    or a prompt and its continuation."""
    if "text.output" in record:
        return f"{record['text.prompt']}{record['text.output']}"
    shown = [text.format(to_plain(record[key])) for key, text in _SHOWN.items() if key in record]
    if record.get("event") == "checkpoint":
        shown.append(f"saved {record['path']}")
    return f"step {record['step']:,}  {'  '.join(shown)}" if shown and "step" in record else ""


def artifact_record(path: Path, *, name: str, kind: str) -> dict[str, object]:
    """Return the record by which the text backends mention an artifact."""
    return {"event": "artifact", "name": name, "kind": kind, "path": str(path)}


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a record are strings, got {key!r:.100}")
    return key


def _item(value: _HoldsScalar) -> object:
    try:
        return value.item()
    except (ValueError, RuntimeError) as error:  # numpy's and torch's answer to several elements
        raise TypeError(f"cannot log a {type(value).__name__} that is not a single number") from error


def _without_nonfinite(plain: object) -> object:
    match plain:
        case float() if not math.isfinite(plain):
            return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
        case dict():
            return {key: _without_nonfinite(entry) for key, entry in plain.items()}
        case list():
            return [_without_nonfinite(entry) for entry in plain]
    return plain
