"""Read JSON from untrusted files: bounded in size, and with a single type of error for any content."""

import json
import os
from pathlib import Path
from typing import Any

from transformerlm.utils.errors import TransformerLMError


def read_json_object(path: Path, *, max_bytes: int, error: type[TransformerLMError]) -> dict[str, Any]:
    """Return the JSON object in a file of at most `max_bytes`.

    Raises `error` if the file cannot be read, is larger, is not UTF-8, is not JSON, is nested too deeply, has a
    duplicate key, a number that JSON does not allow or a string that is not Unicode, or is not an object.
    """
    data = read_bounded(path, max_bytes=max_bytes, error=error)
    return parse_json_object(data, source=str(path), error=error)


def read_bounded(
    path: Path, *, max_bytes: int, error: type[TransformerLMError], advice: str = "check the path"
) -> bytes:
    """Return the bytes of a file of at most `max_bytes`; raise `error` if it is larger or cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(max_bytes + 1) if size <= max_bytes else b""  # a device reports size 0 but may be endless
    except (OSError, ValueError) as problem:  # ValueError: a byte 0 in the name
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{path}: cannot be read ({reason}); {advice}") from None
    if max(size, len(data)) > max_bytes:
        raise error(f"{path}: has more than {max_bytes:,} bytes, which no file of its kind needs; check the path")
    return data


def parse_json_object(data: bytes, *, source: str, error: type[TransformerLMError]) -> dict[str, Any]:
    """Return the JSON object in `data`; raise `error` as `read_json_object` does, with the name `source`."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise error(f"{source}: {key!r} is listed twice; remove one of its entries")
            found[key] = value
        return found

    def refuse(constant: str) -> Any:
        raise error(f"{source}: not JSON: {constant} is not a number; restore the file")

    try:
        text = data.decode("utf-8")
        content = json.loads(text, object_pairs_hook=distinct, parse_constant=refuse)
        if r"\u" in text:  # the only way to write a lone surrogate
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{source}: not UTF-8 at byte {problem.start}; restore the file") from None
    except UnicodeEncodeError as problem:
        part = problem.object[max(0, problem.start - 20) : problem.end + 20]
        raise error(f"{source}: {part!r} is not valid Unicode; restore the file") from None
    except json.JSONDecodeError as problem:
        raise error(f"{source}: not JSON: {problem.msg} (line {problem.lineno}); restore the file") from None
    except RecursionError:
        raise error(f"{source}: nested too deeply; restore the file") from None
    except error:
        raise
    except ValueError as problem:  # a number with thousands of digits
        raise error(f"{source}: not JSON: {problem}; restore the file") from None
    if not isinstance(content, dict):
        raise error(f"{source}: not a JSON object from names to values; restore the file")
    return content
