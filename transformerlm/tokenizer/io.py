"""`vocab.json` and `merges.txt` in GPT-2's form, written atomically and checked when read.

GPT-2 writes a token as text in which every byte has a printable stand-in (a space is `Ġ`). Special tokens
stand in the vocabulary as plain text. Which entry is which follows from the merges: the single bytes and the
products of merges are ordinary tokens, every other entry is a special token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformerlm.tokenizer.checks import check_merges, check_vocab, ordinary_tokens
from transformerlm.utils.errors import TokenizerError
from transformerlm.utils.files import atomic_write_text

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
MERGES_HEADER = "#version: 0.2"


def gpt2_bytes_to_unicode() -> dict[int, str]:
    """Return GPT-2's stand-in for each byte: its Latin-1 sign if it has one, else U+0100, U+0101, …"""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in prints]
    stand_ins = {byte: chr(byte) for byte in prints} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return dict(sorted(stand_ins.items()))


_STAND_INS = gpt2_bytes_to_unicode()
_BYTES = {character: byte for byte, character in _STAND_INS.items()}
_SPACE = _STAND_INS[ord(" ")]


def _to_text(token: bytes) -> str:
    return token.decode("latin-1").translate(_STAND_INS)


def read_merges(path: Path | str) -> list[tuple[bytes, bytes]]:
    """Read a `merges.txt`, with or without its version line. Raises `TokenizerError` with the line number."""
    return _numbered_merges(Path(path))[0]


def _numbered_merges(path: Path) -> tuple[list[tuple[bytes, bytes]], int]:
    """Return the merges of a file and the number of the line on which the first stands."""
    lines = _read(path).removesuffix("\n").split("\n")
    # Later lines that begin with "#" are merges; the first merge joins two bytes and cannot look like this.
    first = 2 if lines[0].startswith("#version") else 1
    lines = lines[first - 1 :]
    if lines == [""]:
        lines = []
    return [_parse_merge(line, f"{path} (line {n})") for n, line in enumerate(lines, start=first)], first


def _parse_merge(line: str, where: str) -> tuple[bytes, bytes]:
    parts = line.removesuffix("\r").split(" ")
    if len(parts) != 2 or not all(parts):
        raise TokenizerError(f"{where}: {line!r} is not two tokens with one space between; restore the file")
    try:
        left, right = (bytes(_BYTES[character] for character in part) for part in parts)
    except KeyError as error:
        raise TokenizerError(
            f"{where}: {error.args[0]!r} stands for no byte in GPT-2's form; restore the file"
        ) from None
    return left, right


def read_vocab(path: Path | str, merges: Sequence[tuple[bytes, bytes]]) -> dict[int, bytes]:
    """Read a `vocab.json` that belongs to `merges`; see the module for why those are needed.

    Raises `TokenizerError` if it is not a JSON object from distinct tokens to the ids 0, 1, 2, …, or lacks a
    single byte.
    """
    path = Path(path)
    try:
        entries = json.loads(_read(path), object_pairs_hook=lambda pairs: _distinct(pairs, path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: not JSON: {error.msg} (line {error.lineno}); restore the file") from error
    if not isinstance(entries, dict):
        raise TokenizerError(f"{path}: not a JSON object from tokens to ids; restore the file")
    ordinary = {_to_text(token): token for token in ordinary_tokens(merges)}
    vocab: dict[int, bytes] = {}
    for text, token_id in entries.items():
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(f"{path}: {text!r} has the id {token_id!r}; give a whole number from 0 on")
        if token_id in vocab:
            raise TokenizerError(f"{path}: {text!r} has the id {token_id} of another token; give each its own")
        vocab[token_id] = ordinary[text] if text in ordinary else _special(text, path)
    check_vocab(vocab, source=str(path))
    return dict(sorted(vocab.items()))


def _distinct(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for text, token_id in pairs:
        if text in entries:
            raise TokenizerError(f"{path}: {text!r} is listed twice; remove one of its entries")
        entries[text] = token_id
    return entries


def _special(text: str, path: Path) -> bytes:
    """Return the bytes of a special token, unless it looks like a product whose merge is missing."""
    if text.startswith(_SPACE):
        raise TokenizerError(f"{path}: no merge makes {text!r}; give the merges file that belongs to this one")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: {text!r} is not valid Unicode; restore the file") from None


def read_tokenizer_files(
    vocab_path: Path | str, merges_path: Path | str
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Read both files and check that they belong together. Raises `TokenizerError`."""
    merges, first = _numbered_merges(Path(merges_path))
    vocab = read_vocab(vocab_path, merges)
    check_merges(merges, vocab, where=lambda index: f"{merges_path} (line {first + index})")
    return vocab, merges


def write_vocab(path: Path | str, vocab: Mapping[int, bytes], merges: Sequence[tuple[bytes, bytes]]) -> None:
    """Write a `vocab.json`, ids ascending. Raises `TokenizerError` for a special token it cannot express."""
    ordinary = ordinary_tokens(merges)
    entries: dict[str, int] = {}
    for token_id, token in sorted(vocab.items()):
        text = _to_text(token) if token in ordinary else token.decode("utf-8")
        if text in entries or (token not in ordinary and text.startswith(_SPACE)):
            raise TokenizerError(f"special token {text!r} reads like an ordinary token in {path}; choose another text")
        entries[text] = token_id
    atomic_write_text(path, json.dumps(entries))


def write_merges(path: Path | str, merges: Sequence[tuple[bytes, bytes]]) -> None:
    """Write a `merges.txt`, one merge a line in their order."""
    lines = [f"{_to_text(left)} {_to_text(right)}" for left, right in merges]
    atomic_write_text(path, "\n".join([MERGES_HEADER, *lines]) + "\n")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}; restore the file") from error
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error.strerror}); train a tokenizer with transformerlm-train-tokenizer"
        ) from error
