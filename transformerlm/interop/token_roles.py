"""Find the special tokens that begin and end texts, in the files of a Hugging Face folder that may name them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformerlm.utils.errors import InteropError, shown
from transformerlm.utils.json_file import read_json_object

CONFIG_FILE, MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"
ID_FILES = ("generation_config.json", "config.json")
MAX_BYTES = 1 << 24


class Roles(NamedTuple):
    """The token before each text and the one that ends documents; None if the folder names none."""

    beginning: str | None
    end: str | None

    def named(self) -> set[str]:
        """Return the tokens that have a role."""
        return {token for token in self if token is not None}


def read_roles(folder: Path, post_processor: Any, ids: Mapping[str, int]) -> Roles:
    """Return the roles of tokens; `ids` are the ids of added tokens, `post_processor` is from `tokenizer.json`.

    As in transformers, `tokenizer_config.json` overrides the post-processor if it sets whether to add tokens.

    Raises `InteropError` for damaged files, and for a post-processor that does more than add one token before and one
    after each text.
    """
    before, after = _template(post_processor, ids)
    config = _read(folder / CONFIG_FILE)
    beginning = before
    if "add_bos_token" in config or "add_eos_token" in config:
        beginning = _named("bos_token", config, folder) if config.get("add_bos_token") is True else None
    end = _named("eos_token", config, folder) or _by_id(folder, ids) or after
    return Roles(beginning, end)


def later_tokens(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the added tokens of `tokenizer_config.json`, which may list more of them than `tokenizer.json`."""
    tokens = _read(folder / CONFIG_FILE).get("added_tokens_decoder", {})
    if not isinstance(tokens, dict):
        raise InteropError(f"{folder / CONFIG_FILE}: added_tokens_decoder is no object; restore the file")
    for token_id, token in tokens.items():
        if not isinstance(token, dict) or not (token_id.isascii() and token_id.isdigit() and len(token_id) < 10):
            raise InteropError(
                f"{folder / CONFIG_FILE}: {token_id[:100]!r} is no id of an added token; restore the file"
            )
        yield {**token, "id": int(token_id)}


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=MAX_BYTES, error=InteropError) if path.exists() else {}


def _named(role: str, config: dict[str, Any], folder: Path) -> str | None:
    """Return the token with this role in the configuration, or else in the map of special tokens."""
    for content, name in ((config, CONFIG_FILE), (_read(folder / MAP_FILE), MAP_FILE)):
        token = content.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise InteropError(f"{folder / name}: {role} is {str(token)[:100]}, no text; restore the file")
        if token:
            return token
    return None


def _by_id(folder: Path, ids: Mapping[str, int]) -> str | None:
    """Return the added token of the first end-of-text id in the model's files; None if there is none."""
    by_id = {token_id: token for token, token_id in ids.items()}
    return next((by_id[token_id] for token_id in read_end_ids(folder) if token_id in by_id), None)


def read_end_ids(folder: Path) -> tuple[int, ...]:
    """Return the end-of-text ids in the model's files, `generation_config.json` before `config.json`.

    As in transformers, only the first of these files with such ids is used. Raises `InteropError` for invalid ids.
    """
    for name in ID_FILES:
        found = _read(folder / name).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(token_id) is int for token_id in ids):
            raise InteropError(
                f"{folder / name}: eos_token_id must be a token id or a list of them (got {shown(found)}); "
                "restore the file"
            )
        if ids:
            return tuple(dict.fromkeys(ids))
    return ()


def _template(post_processor: Any, ids: Mapping[str, int]) -> tuple[str | None, str | None]:
    """Return the tokens that the post-processor adds before and after a text."""
    before = after = None
    for step in _steps(post_processor):
        kind = step.get("type")
        if kind == "TemplateProcessing":
            before, after = _tokens_around(step, ids)
        elif kind == "RobertaProcessing":
            before, after = (_roberta_token(name, step, ids) for name in ("cls", "sep"))
        elif kind != "ByteLevel":  # which changes only the reported offsets
            raise InteropError(
                f"its post-processor is {shown(kind)}; "
                "only TemplateProcessing, RobertaProcessing and ByteLevel can be read"
            )
    return before, after


def _roberta_token(name: str, step: dict[str, Any], ids: Mapping[str, int]) -> str:
    pair = step.get(name)
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or ids.get(pair[0]) != pair[1]:
        raise InteropError(f"its post-processor's {name} is {str(pair)[:100]}, which is no added token of that id")
    return pair[0]


def _steps(post_processor: Any) -> Iterator[dict[str, Any]]:
    if post_processor is None:
        return
    steps = [post_processor]
    if isinstance(post_processor, dict) and post_processor.get("type") == "Sequence":
        steps = post_processor.get("processors")
    if not isinstance(steps, list):
        raise InteropError("its post-processor is no list; restore the file")
    for step in steps:
        if not isinstance(step, dict):
            raise InteropError("its post-processor is no object; restore the file")
        yield step


def _tokens_around(template: dict[str, Any], ids: Mapping[str, int]) -> tuple[str | None, str | None]:
    items, known = template.get("single"), template.get("special_tokens")
    if not isinstance(items, list) or not isinstance(known, dict):
        raise InteropError("its template for texts is damaged; restore the file")
    around: list[list[str]] = [[]]
    for item in items:
        special = item.get("SpecialToken") if isinstance(item, dict) else None
        if special is None:
            around.append([])
            continue
        token = special.get("id") if isinstance(special, dict) else None
        entry = known.get(token) if isinstance(token, str) else None
        if (
            not isinstance(token, str)
            or token not in ids
            or not isinstance(entry, dict)
            or entry.get("ids") != [ids[token]]
        ):
            raise InteropError(
                f"its template puts {str(token)[:100]!r} around texts, which is no added token of that id"
            )
        around[-1].append(token)
    if len(around) != 2 or max(map(len, around)) > 1:
        raise InteropError("its template puts more around a text than a token before and one after it")
    before, after = (tokens[0] if tokens else None for tokens in around)
    return before, after
