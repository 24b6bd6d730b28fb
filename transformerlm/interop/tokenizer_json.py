"""Read and write the tokenizers of Hugging Face folders: `tokenizer.json` and `tokenizer_config.json`.

    tokenizer.json            vocabulary, merges, special tokens, pattern, normalization, the token before a text
    tokenizer_config.json     the special tokens that begin and end texts; then special_tokens_map.json,
                              generation_config.json and config.json are searched for them

Supported are byte-level BPE tokenizers with one of our patterns of pre-tokenization: GPT-2, Llama 3, Qwen2, Qwen3,
SmolLM, the o200k family and Tekken. A tokenizer that would split or merge text differently is refused with the reason.
Everything is checked before it is used: any content of the files raises `InteropError` at worst.
"""

import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from transformerlm.interop.pre_tokenizers import pattern_of, pre_tokenizer_of
from transformerlm.interop.token_roles import later_tokens, read_roles
from transformerlm.tokenizer import Tokenizer, gpt2_bytes_to_unicode
from transformerlm.tokenizer.io import from_stand_ins, to_stand_ins, vocab_entries
from transformerlm.tokenizer.normalize import is_inert
from transformerlm.tokenizer.validation import MAX_IDS, ordinary_tokens
from transformerlm.utils.errors import InteropError, TokenizerError, shown
from transformerlm.utils.files import atomic_write_text
from transformerlm.utils.json_file import read_json_object

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
MAX_BYTES = 1 << 27
"""Maximum size of `tokenizer.json`; with 200,000 tokens it has about 30 million bytes."""

MAX_ADDED_LENGTH = 1000  # characters
MAX_PAIRS = 20_000  # pairs of added tokens that are compared
_BYTE_LETTERS = frozenset(gpt2_bytes_to_unicode().values())


class AddedToken(NamedTuple):
    """A token that is matched in the text before pre-tokenization."""

    token_id: int
    normalized: bool


def read_tokenizer(folder: Path | str) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder.

    It gives the same ids as `tokenizers` without `add_special_tokens`. `beginning_of_text` is the token that
    `tokenizers` adds before each text with it, and `end_of_text` the folder's "eos" token.

    Raises `InteropError` if the tokenizer is missing, damaged or unsupported: another model than byte-level BPE,
    another pattern or normalization, or special tokens with conditions.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.exists() and (path.parent / "tokenizer.model").exists():
        raise InteropError(
            f"{path.parent}: has a SentencePiece model only, which cannot be read; only byte-level BPE can"
        )
    content = read_json_object(path, max_bytes=MAX_BYTES, error=InteropError)
    try:
        return _tokenizer(content, path)
    except (InteropError, TokenizerError) as error:
        raise InteropError(error if str(error).startswith(str(path.parent)) else f"{path}: {error}") from None


def _tokenizer(content: dict[str, Any], path: Path) -> Tokenizer:
    model = _checked_model(content)
    pattern = pattern_of(content.get("pre_tokenizer"))
    normalization = _normalization(content.get("normalizer"))
    _check_decoder(content.get("decoder"), path)
    added = _added_tokens([*_list(content, "added_tokens"), *later_tokens(path.parent)], normalization)
    roles = read_roles(path.parent, content.get("post_processor"), {token: added[token].token_id for token in added})
    missing = roles.named() - added.keys() - model["vocab"].keys()
    if missing:
        raise InteropError(f"it has no token {min(missing)!r}, though the folder names that as the one for a role")
    merges = _merges(model["merges"])
    vocab = _vocab(model["vocab"], added, {*added, *roles.named()}, merges)
    return Tokenizer(
        vocab,
        merges,
        {text: added[text].token_id if text in added else model["vocab"][text] for text in {*added, *roles.named()}},
        pattern=pattern,
        normalization=normalization,
        whole_words=model.get("ignore_merges") is True,
        beginning_of_text=roles.beginning,
        unknown_token=_unknown_token(model),
        **({} if roles.end is None else {"end_of_text": roles.end}),
    )


def _check_decoder(decoder: Any, path: Path) -> None:
    if isinstance(decoder, dict) and decoder.get("type") == "Sequence":
        steps = decoder.get("decoders")
        decoder = steps[0] if isinstance(steps, list) and len(steps) == 1 else decoder
    if decoder is None:
        warnings.warn(
            f"{path}: has no decoder, so tokenizers shows tokens in GPT-2's byte encoding, joined by spaces; here they "
            "are decoded to the text they stand for",
            stacklevel=4,
        )
    elif not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise InteropError("its decoder is not ByteLevel, so its ids mean other bytes than here")


def _list(content: dict[str, Any], name: str) -> list[Any]:
    items = content.get(name)
    if not isinstance(items, list | None):
        raise InteropError(f"its {name} are no list; restore the file")
    return items or []


def _checked_model(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("model")
    if not isinstance(model, dict):
        raise InteropError("it has no model; restore the file")
    kind = model.get("type", "BPE" if "merges" in model else None)  # the oldest files have no type
    if kind != "BPE":
        raise InteropError(f"its model is {shown(kind)}; only byte-level BPE can be read")
    if model.get("byte_fallback", False) is not False:
        raise InteropError(
            "its model is SentencePiece's BPE (byte_fallback), over characters; only byte-level can be read"
        )
    for name, harmless in (
        ("dropout", (None, 0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
    ):
        if model.get(name) not in harmless:
            raise InteropError(f"its model has {name} {shown(repr(model[name]))}, which is not done here")
    if not isinstance(model.get("ignore_merges", False), bool):
        raise InteropError("its model's ignore_merges is neither true nor false; restore the file")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise InteropError("its model has no vocabulary or no list of merges; restore the file")
    return model


def _normalization(normalizer: Any) -> str | None:
    if normalizer is None:
        return None
    if not isinstance(normalizer, dict):
        raise InteropError("its normalizer is no object; restore the file")
    steps = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    kinds = (
        [step.get("type") if isinstance(step, dict) else step for step in steps] if isinstance(steps, list) else None
    )
    if kinds == []:
        return None
    if kinds == ["NFC"]:
        return "NFC"
    raise InteropError(f"its normalizer is {shown(normalizer.get('type'))}, of {shown(kinds)}; only NFC is done here")


def _added_tokens(tokens: list[Any], normalization: str | None) -> dict[str, AddedToken]:
    added: dict[str, AddedToken] = {}
    for token in tokens:
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise InteropError(f"its added token {str(token)[:100]} has no id or no content; restore the file")
        text = token["content"]
        if len(text) > MAX_ADDED_LENGTH:
            raise InteropError(f"its added token {text[:20]!r}… is longer than {MAX_ADDED_LENGTH:,} characters")
        for condition in ("single_word", "lstrip", "rstrip"):
            if token.get(condition, False) is not False:
                raise InteropError(f"its added token {text!r} is matched with {condition}, which is not done here")
        new = AddedToken(token["id"], token.get("normalized", True) is not False)
        if added.get(text, new) != new:
            raise InteropError(f"its added token {text!r} is listed twice, in two ways; remove one of its entries")
        added[text] = new
    _check_passes(added, normalization)
    return added


def _check_passes(added: dict[str, AddedToken], normalization: str | None) -> None:
    """Raise `InteropError` if matching all added tokens in one pass would differ from the two passes of `tokenizers`.

    `tokenizers` first matches the tokens that are not normalized, then the others in the normalized text.
    """
    first = [text for text, token in added.items() if not token.normalized]
    later = [text for text, token in added.items() if token.normalized]
    changed = [text for text in later if normalization and not is_inert(text)]
    if changed:
        raise InteropError(f"its added token {changed[0]!r} is matched in normalized text, which is not supported")
    if len(first) * len(later) > MAX_PAIRS:
        raise InteropError("it has too many added tokens, normalized and not, to see that none overlaps another")
    for one, other in product(first, later):
        if _overlap(one, other):
            raise InteropError(f"its added tokens {one!r} and {other!r} overlap, and only one of them is normalized")


def _overlap(one: str, other: str) -> bool:
    """Return whether occurrences of both in a text can overlap."""
    if one in other or other in one:
        return True
    sizes = range(1, min(len(one), len(other)))
    return any(one[-size:] == other[:size] or other[-size:] == one[:size] for size in sizes)


def _vocab(
    entries: dict[str, Any], added: dict[str, AddedToken], special: set[str], merges: list[tuple[bytes, bytes]]
) -> dict[int, bytes]:
    """Return the tokens of the model by id; `special` are the tokens matched before pre-tokenization.

    Another entry that is not written with the byte encoder is decoded literally, and never results from encoding.
    """
    ordinary = {to_stand_ins(token): token for token in ordinary_tokens(merges)}
    vocab: dict[int, bytes] = {}
    for text, token_id in entries.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_IDS:
            raise InteropError(f"its token {text!r} has the id {str(token_id)[:30]}; ids are 0 to {MAX_IDS - 1:,}")
        if token_id in vocab or (text in added and added[text].token_id != token_id):
            raise InteropError(
                f"its token {text!r} and another have the id {token_id}, or it has two; restore the file"
            )
        if text in special and ordinary.get(text, text.encode("utf-8")) != text.encode("utf-8"):
            raise InteropError(f"its added token {text!r} is also how another token is written, {ordinary[text]!r}")
        is_text = text in special or any(character not in _BYTE_LETTERS for character in text)
        vocab[token_id] = text.encode("utf-8") if is_text else from_stand_ins(text)
    for next_id, text in enumerate((text for text in added if text not in entries), start=len(entries)):
        if added[text].token_id != next_id or next_id in vocab:
            raise InteropError(
                f"its added token {text!r} has the id {added[text].token_id}, or it has two; its place gives {next_id}"
            )
    return vocab


def _unknown_token(model: dict[str, Any]) -> str | None:
    """Return the token for bytes missing from the vocabulary; None if it drops them or none are missing."""
    unknown = model.get("unk_token")
    if unknown is None or all(letter in model["vocab"] for letter in _BYTE_LETTERS):
        return None
    if not isinstance(unknown, str) or unknown not in model["vocab"]:
        raise InteropError(f"its model has the unk_token {shown(unknown)}, which is no token; restore the file")
    if model.get("fuse_unk") is True:
        raise InteropError("its model makes one unknown token of several bytes (fuse_unk), which is not done here")
    return unknown


def _bytes(text: str) -> bytes:
    try:
        return from_stand_ins(text)
    except KeyError as error:
        raise InteropError(
            f"its token {text[:100]!r} has {error.args[0]!r}, which stands for no byte; only byte-level BPE can be read"
        ) from None


def _merges(items: list[Any]) -> list[tuple[bytes, bytes]]:
    merges: list[tuple[bytes, bytes]] = []
    for item in items:
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise InteropError(f"its merge {str(item)[:100]!r} is no pair of tokens; restore the file")
        merges.append((_bytes(parts[0]), _bytes(parts[1])))
    return merges


def write_tokenizer(tokenizer: Tokenizer, folder: Path | str, *, context_length: int) -> None:
    """Write the files from which transformers' `AutoTokenizer` builds the same tokenizer, each atomically.

    By default it adds `beginning_of_text` before texts, as `Predictor` does, and no other token. `folder` is created if
    necessary, and may have these files with the same content; `context_length` is the model's.

    Raises `InteropError`, before any file is written, if one of the files exists with other content, or if a special
    token would be written like an ordinary one in `tokenizer.json`.
    """
    path = Path(folder)
    try:
        files = {TOKENIZER_FILE: _tokenizer_json(tokenizer), CONFIG_FILE: _config_json(tokenizer, context_length)}
    except TokenizerError as error:
        raise InteropError(str(error)) from None
    texts = {name: json.dumps(content, ensure_ascii=False) + "\n" for name, content in files.items()}
    for name, text in texts.items():
        if (path / name).exists() and (path / name).read_bytes() != text.encode("utf-8"):
            raise InteropError(f"{path / name}: already exists, with other content; choose another folder")
    for name, text in texts.items():
        atomic_write_text(path / name, text)


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    settings, special = tokenizer.settings, tokenizer.special_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": token, **flags} for token, token_id in special.items()],
        "normalizer": settings.normalization and {"type": settings.normalization},
        "pre_tokenizer": pre_tokenizer_of(settings.pattern),
        "post_processor": _post_processor(settings.beginning_of_text, tokenizer.bos_token_id),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": settings.whole_words,
            "vocab": vocab_entries(tokenizer.vocab, tokenizer.merges, special, target=TOKENIZER_FILE),
            "merges": [f"{to_stand_ins(left)} {to_stand_ins(right)}" for left, right in tokenizer.merges],
        },
    }


def _post_processor(token: str | None, token_id: int | None) -> dict[str, Any] | None:
    if token is None:
        return None
    text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    before, before_second = ({"SpecialToken": {"id": token, "type_id": number}} for number in range(2))
    return {
        "type": "TemplateProcessing",
        "single": [before, text],
        "pair": [before, text, before_second, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _config_json(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    settings = tokenizer.settings
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the class that uses tokenizer.json unchanged
        "bos_token": settings.beginning_of_text,
        "eos_token": settings.end_of_text if tokenizer.eos_token_id is not None else None,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
