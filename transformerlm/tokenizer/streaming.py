"""Streaming: cut text at places that do not change its pre-tokens, and decode ids as they arrive."""

import codecs
from collections.abc import Collection, Iterable, Iterator
from typing import Any, AnyStr, NamedTuple, Protocol

import regex

from transformerlm.tokenizer.pretokenize import CL100K, GPT2, GPT2_DIGITS, LLAMA3, O200K, QWEN2, TEKKEN

BLOCK_LENGTH = 1 << 16


class _Boundary(NamedTuple):
    """Patterns of the last boundary of pre-tokens that holds in any context, for text and for bytes."""

    in_text: regex.Pattern[str]
    in_bytes: regex.Pattern[bytes]


def _boundary(*, not_after_letters: str, white: str) -> _Boundary:
    """Return the safe boundaries of a pre-tokenization pattern; `(?r)` searches from the end.

    In every pattern, only a letter (in `o200k`, also an apostrophe) continues a pre-token after a letter, only a number
    after a number, and white space never continues one after a character that is not white space (except a line break
    in GPT-2's successors). Lookahead past these boundaries does not change the pre-tokens before them. The few letters
    and numbers used here have the same class in every version of Unicode; surrogates, which may be half a letter, are
    never separated; and normalization never composes or reorders characters across these boundaries.

    The bytes need not be UTF-8, and are cut only before ASCII. The last line handles white space after a non-ASCII
    byte; the bytes it names are white space too.
    """
    cjk, cjk_signs = (
        r"[\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]",
        r"[\u3001\u3002\uff01\uff0c\uff1f]",
    )  # 好。
    after_ascii = rf"(?r)(?<=[A-Za-z])[{not_after_letters}]|(?<=[0-9])[\x00-/:-\x7f]"
    in_text = rf"{after_ascii}|(?<=\S){white}|(?<={cjk}){cjk_signs}"
    ascii_white = r"[\t-\r ]" if white == r"\s" else r"[\t\x0b\x0c ]"
    in_bytes = (
        rf"{after_ascii}|(?<=[!-~]){ascii_white}|(?<=[\x80-\xff])"
        rf"(?<!\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80){ascii_white}"
    )
    return _Boundary(regex.compile(in_text), regex.compile(in_bytes.encode("ascii")))


_OF_GPT2 = _boundary(not_after_letters=r"\x00-@\[-`{-\x7f", white=r"\s")
_OF_SUCCESSORS = _boundary(not_after_letters=r"\x00-@\[-`{-\x7f", white=r"[^\S\r\n]")
_OF_O200K = _boundary(not_after_letters=r"\x00-&(-@\[-`{-\x7f", white=r"[^\S\r\n]")
_BOUNDARIES = {
    GPT2: _OF_GPT2,
    GPT2_DIGITS: _OF_GPT2,
    CL100K: _OF_SUCCESSORS,
    LLAMA3: _OF_SUCCESSORS,
    QWEN2: _OF_SUCCESSORS,
    O200K: _OF_O200K,
    TEKKEN: _OF_SUCCESSORS,
}


def safe_blocks(
    parts: Iterable[AnyStr],
    special_tokens: Collection[str] = (),
    length: int = BLOCK_LENGTH,
    pattern: str = GPT2,
) -> Iterator[AnyStr]:
    """Cut the concatenation of `parts` (text or bytes) into blocks that can be pre-tokenized separately.

    The blocks have the same special tokens and pre-tokens as the whole text, however it is divided into `parts`, also
    after NFC normalization. `pattern` is one of `pretokenize.PATTERNS`. A block has about `length` characters or bytes;
    it is longer only where no safe cut exists, as in a very long word. Then the next attempt is made once the text has
    doubled, so the work stays linear.
    """
    waiting: list[AnyStr] = []
    size, enough = 0, length
    for part in _slices(parts, length):
        waiting.append(part)
        size += len(part)
        if size < enough:
            continue
        text = _join(waiting)
        cut = _last_safe_cut(text, special_tokens, pattern)
        if cut:
            yield text[:cut]
        waiting = [text[cut:]]
        size = len(text) - cut
        enough = max(length, 2 * size)
    if size:
        yield _join(waiting)


def _slices(parts: Iterable[AnyStr], length: int) -> Iterator[AnyStr]:
    for part in parts:
        if len(part) <= length:
            yield part
        else:
            for start in range(0, len(part), length):
                yield part[start : start + length]


def _join(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else parts[0][:0].join(parts)


def _last_safe_cut(text: str | bytes, special_tokens: Collection[str], pattern: str = GPT2) -> int:
    """Return the last safe place to cut `text`, which may continue, or 0 if there is none.

    A cut is safe if it is a boundary of pre-tokens in any context (see above) and is not inside an occurrence of a
    special token, even an overlapped one: then each match of the leftmost-longest search for special tokens is wholly
    on one side, and the two sides can be searched separately. An occurrence around a cut is wholly in `text` if the
    longest special token fits behind the cut.
    """
    if isinstance(text, str):
        return _last_cut(text, _BOUNDARIES[pattern].in_text, special_tokens)
    return _last_cut(text, _BOUNDARIES[pattern].in_bytes, [special.encode("utf-8") for special in special_tokens])


def _last_cut(text: AnyStr, boundary: regex.Pattern[Any], special_tokens: Collection[AnyStr]) -> int:
    longest = max(map(len, special_tokens), default=1)
    end = max(0, len(text) - longest + 2)
    while match := boundary.search(text, 0, end):
        end = match.start()
        if not any(
            special in text[max(0, end - len(special) + 1) : end + len(special) - 1] for special in special_tokens
        ):
            return end
    return 0


class DecodesBytes(Protocol):
    """The part of a tokenizer that the streaming decoder uses."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


class StreamingDecoder:
    """Decodes ids as they arrive, holding back a character until it is complete.

    The concatenated results of `push` and `flush` equal `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: DecodesBytes) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text completed by `ids`; raise `TokenizerError` for an unknown id."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """End the text: return U+FFFD for an incomplete character. A new text may follow."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
