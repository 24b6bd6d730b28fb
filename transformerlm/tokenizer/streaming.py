"""Text that comes in parts: cutting it where nothing depends on the cut, and decoding ids as they come."""

import codecs
from collections.abc import Collection, Iterable, Iterator
from typing import Any, AnyStr, NamedTuple, Protocol

import regex

from transformerlm.tokenizer.pretokenize import CL100K, GPT2, GPT2_DIGITS, LLAMA3, O200K, QWEN2, TEKKEN

BLOCK_LENGTH = 1 << 16


class _Boundary(NamedTuple):
    """The last place where a pre-token ends whatever stands around it, in text and in bytes."""

    in_text: regex.Pattern[str]
    in_bytes: regex.Pattern[bytes]


def _boundary(*, not_after_letters: str, white: str) -> _Boundary:
    """Return the boundaries of a pattern of pre-tokenization; `(?r)` searches from the end.

    No alternative of any pattern goes on after a letter with anything but a letter (in `o200k`, an apostrophe), after a
    number with anything but a number, or after a character that is not white space with white space (in the successors
    of GPT-2, with a line break). And nothing that a pattern looks at behind these places changes what stands before.
    The letters and numbers here are few: they are the same in every version of Unicode, and no surrogate, which may be
    half a letter, is cut from another. No character behind these places is one that normalization joins to what stands
    before it, or puts before that.

    The bytes need not be UTF-8, and are cut only before ASCII. The last line is about white space after a byte that is
    not ASCII; the bytes named there are white space too.
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
    """Cut the text or bytes that `parts` join to into blocks that can be pre-tokenized each by itself.

    The special tokens and the pre-tokens of the blocks, one block after the other, are those of the whole
    text, however it is divided into `parts`, and so are they in form C of Unicode. `pattern` is one of
    `pretokenize.PATTERNS`. A block has about `length` characters or bytes; it is longer only
    where no safe cut exists, as in a very long word. Then the next attempt waits until the text has doubled,
    so that the work stays linear.
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
    """Return the last safe place to cut `text`, of which more may follow, or 0 if there is none.

    A cut is safe if it is a boundary of pre-tokens in any context (see above) and lies inside no
    occurrence of a special token, not even one that another special token overlaps: then each match of the
    leftmost-longest search for special tokens lies wholly on one side, and neither side's search sees the
    other. An occurrence around a cut is wholly in `text` if the longest special token fits behind the cut.
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
    """What the streaming decoder needs of a tokenizer."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


class StreamingDecoder:
    """Turns ids into text as they come, holding back a character until all its bytes are there.

    What `push` and `flush` return joins to `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: DecodesBytes) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that is complete after `ids`; raise `TokenizerError` for an unknown id."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """End the text: return U+FFFD for what is left of an unfinished character. A new text may follow."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
