"""Text that comes in parts: cutting it where nothing depends on the cut, and decoding ids as they come."""

import codecs
from collections.abc import Collection, Iterable, Iterator
from typing import Any, AnyStr, Protocol

import regex

BLOCK_LENGTH = 1 << 16

# The last place where a pre-token ends whatever stands around it; `(?r)` searches from the end. No alternative of the
# pre-token pattern goes on after a letter with anything but a letter, after a number with anything but a number, or
# after a character that is not white space with white space. The letters and numbers here are few: they are the same in
# every version of Unicode, and no surrogate, which may be half a letter, is cut from another.
_TEXT_BOUNDARY = regex.compile(
    r"(?r)(?<=[A-Za-z])[\x00-@\[-`{-\x7f]|(?<=[0-9])[\x00-/:-\x7f]|(?<=\S)\s"
    r"|(?<=[\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3])[\u3001\u3002\uff01\uff0c\uff1f]"  # CJK: 。 after 好
)

# The same for bytes, which need not be UTF-8, and only before ASCII. The second line is about white space after a byte
# that is not ASCII; the bytes named there are white space too.
_BYTES_BOUNDARY = regex.compile(
    rb"(?r)(?<=[A-Za-z])[\x00-@\[-`{-\x7f]|(?<=[0-9])[\x00-/:-\x7f]|(?<=[!-~])[\t-\r ]|(?<=[\x80-\xff])"
    rb"(?<!\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)[\t-\r ]"
)


def safe_blocks(
    parts: Iterable[AnyStr], special_tokens: Collection[str] = (), length: int = BLOCK_LENGTH
) -> Iterator[AnyStr]:
    """Cut the text or bytes that `parts` join to into blocks that can be pre-tokenized each by itself.

    The special tokens and the pre-tokens of the blocks, one block after the other, are those of the whole
    text, however it is divided into `parts`. A block has about `length` characters or bytes; it is longer only
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
        cut = _last_safe_cut(text, special_tokens)
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


def _last_safe_cut(text: str | bytes, special_tokens: Collection[str]) -> int:
    """Return the last safe place to cut `text`, of which more may follow, or 0 if there is none.

    A cut is safe if it is a boundary of pre-tokens in any context (see above) and lies inside no
    occurrence of a special token, not even one that another special token overlaps: then each match of the
    leftmost-longest search for special tokens lies wholly on one side, and neither side's search sees the
    other. An occurrence around a cut is wholly in `text` if the longest special token fits behind the cut.
    """
    if isinstance(text, str):
        return _last_cut(text, _TEXT_BOUNDARY, special_tokens)
    return _last_cut(text, _BYTES_BOUNDARY, [special.encode("utf-8") for special in special_tokens])


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
