"""`vocab.json` and `merges.txt` in GPT-2's form, written atomically and checked when read.

GPT-2's byte encoder maps each byte of a token to a printable character (a space is `Ġ`). Special tokens are plain text
in the vocabulary. The merges tell them apart: single bytes and merged tokens are ordinary tokens, every other entry is
a special token. If that rule does not hold, a third file names the special tokens; see `settings`.
"""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from transformerlm.tokenizer.settings import (
    SETTINGS_FILE,
    SpecialTokens,
    TokenizerSettings,
    read_settings,
    write_settings,
)
from transformerlm.tokenizer.unicode.change import changed_character
from transformerlm.tokenizer.unicode.ranges import UNICODE_VERSION
from transformerlm.tokenizer.validation import check_merges, check_vocab, ordinary_ids, ordinary_tokens
from transformerlm.utils.errors import TokenizerError
from transformerlm.utils.files import atomic_write_text
from transformerlm.utils.json_file import parse_json_object, read_bounded

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
MERGES_HEADER = "#version: 0.2"
MAX_BYTES = 1 << 27
"""Size limit of either file, in bytes. A vocabulary of 200,000 tokens has three million."""


def gpt2_bytes_to_unicode() -> dict[int, str]:
    """Return GPT-2's byte encoder: for each byte its printable Latin-1 character, or else U+0100, U+0101, …"""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in prints]
    stand_ins = {byte: chr(byte) for byte in prints} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return dict(sorted(stand_ins.items()))


_STAND_INS = gpt2_bytes_to_unicode()
_BYTES = {character: byte for byte, character in _STAND_INS.items()}
_SPACE = _STAND_INS[ord(" ")]


def to_stand_ins(token: bytes) -> str:
    """Return a token in GPT-2's form."""
    return token.decode("latin-1").translate(_STAND_INS)


def from_stand_ins(text: str) -> bytes:
    """Return the token of a text in GPT-2's form; raise `KeyError` for a character that encodes no byte."""
    return bytes(_BYTES[character] for character in text)


def read_merges(path: Path | str) -> list[tuple[bytes, bytes]]:
    """Read a `merges.txt`, with or without its version line. Raises `TokenizerError` with the line number."""
    return _numbered_merges(Path(path))[0]


def _numbered_merges(path: Path) -> tuple[list[tuple[bytes, bytes]], int]:
    """Return the merges of a file and the line number of the first."""
    try:
        text = _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}; restore the file") from error
    lines = text.removesuffix("\n").split("\n")
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
        left, right = map(from_stand_ins, parts)
    except KeyError as error:
        raise TokenizerError(
            f"{where}: {error.args[0]!r} stands for no byte in GPT-2's form; restore the file"
        ) from None
    return left, right


def read_vocab(
    path: Path | str, merges: Sequence[tuple[bytes, bytes]], special_tokens: Collection[str] | None = None
) -> dict[int, bytes]:
    """Read a `vocab.json` that belongs to `merges`; see the module docstring for why these are needed.

    `special_tokens` says which of the entries without a merge are special; without it, all are.

    Raises `TokenizerError` if it is not a JSON object from distinct tokens to distinct ids.
    """
    path = Path(path)
    ordinary = {to_stand_ins(token): token for token in ordinary_tokens(merges)}
    vocab: dict[int, bytes] = {}
    for text, token_id in parse_json_object(_read(path), source=str(path), error=TokenizerError).items():
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(f"{path}: {text!r} has the id {token_id!r}; give a whole number from 0 on")
        if token_id in vocab:
            raise TokenizerError(f"{path}: {text!r} has the id {token_id} of another token; give each its own")
        vocab[token_id] = ordinary[text] if text in ordinary else _other(text, path, special_tokens)
    check_vocab(vocab, source=str(path))
    ordinary_ids(vocab, (), source=str(path))
    return dict(sorted(vocab.items()))


def _other(text: str, path: Path, special_tokens: Collection[str] | None) -> bytes:
    """Return the bytes of an entry that no merge makes."""
    if special_tokens is None:
        return _special(text, path)
    if text in special_tokens:
        return text.encode("utf-8")
    try:
        return from_stand_ins(text)
    except KeyError as error:
        raise TokenizerError(
            f"{path}: {text!r} is no special token, and {error.args[0]!r} stands for no byte; restore the file"
        ) from None


def _special(text: str, path: Path) -> bytes:
    """Return the bytes of a special token, unless it looks like a merged token whose merge is missing."""
    if text.startswith(_SPACE):
        raise TokenizerError(f"{path}: no merge makes {text!r}; give the merges file that belongs to this one")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{path}: {text!r} is not valid Unicode; restore the file") from None


def read_tokenizer_files(
    vocab_path: Path | str, merges_path: Path | str, special_tokens: Collection[str] | None = None
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Read both files and check that they belong together; see `read_vocab`. Raises `TokenizerError`."""
    merges, first = _numbered_merges(Path(merges_path))
    vocab = read_vocab(vocab_path, merges, special_tokens)
    check_merges(merges, set(vocab.values()), where=lambda index: f"{merges_path} (line {first + index})")
    return vocab, merges


def read_folder(folder: Path) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]], SpecialTokens, TokenizerSettings]:
    """Return vocabulary, merges, special tokens and settings as `write_folder` wrote them.

    Warns if the tokenizer may predate the change of character classes and has an affected character.

    Raises `TokenizerError`.
    """
    vocab_path, merges_path = folder / VOCAB_FILE, folder / MERGES_FILE
    if not (folder / SETTINGS_FILE).exists():
        vocab, merges = read_tokenizer_files(vocab_path, merges_path)
        ordinary = ordinary_tokens(merges)
        special = [token.decode("utf-8") for token in vocab.values() if token not in ordinary]
        _warn_of_changed_character(folder, vocab, TokenizerSettings())
        return vocab, merges, special, TokenizerSettings()
    settings, special, is_versioned = read_settings(folder / SETTINGS_FILE)
    vocab, merges = read_tokenizer_files(vocab_path, merges_path, set(special))
    present = set(vocab.values())
    for token in special if isinstance(special, list) else ():
        if token.encode("utf-8") not in present:
            raise TokenizerError(f"{vocab_path}: the special token {token!r} is missing; restore the files")
    if not is_versioned:
        _warn_of_changed_character(folder, vocab, settings)
    return vocab, merges, special, settings


def _warn_of_changed_character(folder: Path, vocab: Mapping[int, bytes], settings: TokenizerSettings) -> None:
    character = changed_character(vocab.values(), settings.pattern)
    if character is not None:
        warnings.warn(
            f"{folder}: a token has the character U+{ord(character):04X}, whose class differs between Unicode 18.0, "
            f"which older versions of transformerlm used, and {UNICODE_VERSION}: text with such characters may be cut "
            "differently than in training",
            stacklevel=4,
        )


def write_folder(
    folder: Path,
    vocab: Mapping[int, bytes],
    merges: Sequence[tuple[bytes, bytes]],
    special_tokens: Mapping[str, int],
    settings: TokenizerSettings,
) -> None:
    """Write the files of a tokenizer, each atomically; the third only if the first two cannot express it."""
    ordinary = ordinary_tokens(merges)
    special_ids = set(special_tokens.values())
    needs_ids = any(token.encode("utf-8") in ordinary for token in special_tokens)
    says_more = (
        needs_ids
        or settings.changed()
        or any(token not in ordinary and token_id not in special_ids for token_id, token in vocab.items())
        or any(token.startswith(_SPACE) for token in special_tokens)
        or changed_character(vocab.values(), settings.pattern) is not None
    )
    if needs_ids:  # special tokens that look like ordinary ones go to the third file
        id_of = ordinary_ids(vocab, special_ids, source=str(folder))
        vocab = {token_id: token for token_id, token in vocab.items() if id_of[token] == token_id}
    write_vocab(folder / VOCAB_FILE, vocab, merges, special_tokens if says_more else None)
    write_merges(folder / MERGES_FILE, merges)
    if says_more:
        write_settings(folder / SETTINGS_FILE, settings, dict(special_tokens) if needs_ids else list(special_tokens))
    else:
        (folder / SETTINGS_FILE).unlink(missing_ok=True)  # left over from another tokenizer


def write_vocab(
    path: Path | str,
    vocab: Mapping[int, bytes],
    merges: Sequence[tuple[bytes, bytes]],
    special_tokens: Mapping[str, int] | None = None,
) -> None:
    """Write a `vocab.json`, ids ascending; without `special_tokens`, all entries without a merge are special.

    Raises `TokenizerError` for a special token it cannot express.
    """
    atomic_write_text(path, json.dumps(vocab_entries(vocab, merges, special_tokens, target=str(path))))


def vocab_entries(
    vocab: Mapping[int, bytes],
    merges: Sequence[tuple[bytes, bytes]],
    special_tokens: Mapping[str, int] | None,
    target: str,
) -> dict[str, int]:
    """Return the text that `write_vocab` writes; errors name the file `target`."""
    ordinary = ordinary_tokens(merges)
    if special_tokens is None:
        special_ids = {token_id for token_id, token in vocab.items() if token not in ordinary}
    else:
        special_ids = {token_id for token_id in special_tokens.values() if token_id in vocab}
    id_of = ordinary_ids(vocab, special_ids, source=target)
    entries: dict[str, int] = {}
    for token_id, token in sorted(vocab.items()):
        is_special = token_id in special_ids and (token not in ordinary or id_of[token] != token_id)
        text = token.decode("utf-8") if is_special else to_stand_ins(token)
        if text in entries or (is_special and special_tokens is None and text.startswith(_SPACE)):
            raise TokenizerError(
                f"special token {text!r} reads like an ordinary token in {target}; choose another text"
            )
        entries[text] = token_id
    return entries


def write_merges(path: Path | str, merges: Sequence[tuple[bytes, bytes]]) -> None:
    """Write a `merges.txt`, one merge per line, in order."""
    lines = [f"{to_stand_ins(left)} {to_stand_ins(right)}" for left, right in merges]
    atomic_write_text(path, "\n".join([MERGES_HEADER, *lines]) + "\n")


def _read(path: Path) -> bytes:
    advice = "check the path, or train a tokenizer with transformerlm-train-tokenizer"
    return read_bounded(path, max_bytes=MAX_BYTES, error=TokenizerError, advice=advice)
