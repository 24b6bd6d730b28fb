"""`tokenizer_settings.json`: the settings of a tokenizer that differ from GPT-2's.

    {"format_version": 1, "unicode": "16.0", "pattern": "llama3", "normalization": null, "whole_words": true,
     "end_of_text": "<|end_of_text|>", "beginning_of_text": "<|begin_of_text|>",
     "special_tokens": ["<|begin_of_text|>", "<|end_of_text|>", …]}

A tokenizer like GPT-2's has no such file. The file also names the special tokens, so that entries without a merge are
not assumed to be special. They are an object, from text to id, if a special token has the bytes of an ordinary one; it
is then not required in the vocabulary's file. "unknown_token" is optional. "unicode" is the version of the character
classes used for pre-tokenization; older files lack it, see `unicode.change`.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from transformerlm.hparams import END_OF_TEXT
from transformerlm.tokenizer.pretokenize import GPT2, PATTERNS
from transformerlm.tokenizer.unicode.ranges import UNICODE_VERSION
from transformerlm.tokenizer.validation import check_special_tokens
from transformerlm.utils.errors import TokenizerError
from transformerlm.utils.files import write_json
from transformerlm.utils.json_file import read_json_object

SETTINGS_FILE = "tokenizer_settings.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 24


@final
@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The keywords of `Tokenizer`; see there."""

    pattern: str = GPT2
    normalization: str | None = None
    whole_words: bool = False
    end_of_text: str = END_OF_TEXT
    beginning_of_text: str | None = None
    unknown_token: str | None = None

    def check(self, special_tokens: Collection[str]) -> None:
        """Raise `TokenizerError` unless each setting is known and consistent with the special tokens."""
        if not isinstance(self.pattern, str) or self.pattern not in PATTERNS:
            raise TokenizerError(f"pattern is {self.pattern!r}; the patterns are {', '.join(PATTERNS)}")
        if self.normalization not in (None, "NFC"):
            raise TokenizerError(f'normalization is {self.normalization!r}; give None or "NFC"')
        if not isinstance(self.whole_words, bool) or not isinstance(self.end_of_text, str):
            raise TokenizerError("whole_words is True or False, and end_of_text the text of a special token")
        if self.beginning_of_text is not None and self.beginning_of_text not in list(special_tokens):
            raise TokenizerError(
                f"beginning_of_text is {self.beginning_of_text!r}, which is no special token; "
                "name it among the special tokens, or give None"
            )
        if not isinstance(self.unknown_token, str | None):
            raise TokenizerError(f"unknown_token is {self.unknown_token!r}; give the text of a token, or None")

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not GPT-2's."""
        return {name: value for name, value in asdict(self).items() if value != asdict(TokenizerSettings())[name]}


SpecialTokens = list[str] | dict[str, int]


def write_settings(path: Path, settings: TokenizerSettings, special_tokens: SpecialTokens) -> None:
    """Write the file atomically."""
    content = {"format_version": FORMAT_VERSION, "unicode": UNICODE_VERSION, **asdict(settings)}
    content["special_tokens"] = special_tokens
    if settings.unknown_token is None:
        del content["unknown_token"]
    write_json(path, content)


def read_settings(path: Path) -> tuple[TokenizerSettings, SpecialTokens, bool]:
    """Return the settings, the special tokens, and whether the file records the Unicode version.

    Raises `TokenizerError`, naming file and key.
    """
    content = read_json_object(path, max_bytes=MAX_BYTES, error=TokenizerError)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise TokenizerError(f"{path}: format_version is {version!r}, not {FORMAT_VERSION}; use a newer transformerlm")
    unicode_version = content.pop("unicode", None)
    if unicode_version not in (None, UNICODE_VERSION):
        raise TokenizerError(
            f"{path}: unicode is {unicode_version!r}, not {UNICODE_VERSION!r}, so text would be cut differently; "
            "use the transformerlm that wrote the file"
        )
    expected = {"format_version", *(field.name for field in fields(TokenizerSettings)), "special_tokens"}
    for key in sorted((expected ^ content.keys()) - {"unknown_token"}):
        problem = "is missing" if key in expected else "is not known"
        raise TokenizerError(f"{path}: {key!r} {problem}; restore the file, or use a newer transformerlm")
    special_tokens = content.pop("special_tokens")
    del content["format_version"]
    ids = special_tokens.values() if isinstance(special_tokens, dict) else ()
    if (
        not isinstance(special_tokens, list | dict)
        or not all(isinstance(token, str) for token in special_tokens)
        or not all(type(token_id) is int for token_id in ids)
    ):
        raise TokenizerError(f"{path}: special_tokens is no list of texts, nor texts and ids; restore the file")
    settings = TokenizerSettings(**content)
    try:
        check_special_tokens(special_tokens)
        settings.check(special_tokens)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    return settings, special_tokens, unicode_version is not None
