"""Text that comes in parts: cutting it where nothing depends on the cut, and decoding ids as they come."""

import codecs
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

import regex

BLOCK_CHARS = 1 << 16

# The last place where a pre-token ends whatever stands around it; `(?r)` searches from the end. No
# alternative of the pre-token pattern goes on after a letter with anything but a letter, after a number with
# anything but a number, or after a character that is not white space with white space.
_BOUNDARY = regex.compile(r"(?r)(?<=\p{L})\P{L}|(?<=\p{N})\P{N}|(?<=\S)\s")


def safe_blocks(
    parts: Iterable[str], special_tokens: Collection[str] = (), block_chars: int = BLOCK_CHARS
) -> Iterator[str]:
    """Cut the text that `parts` join to into blocks that can be pre-tokenized each by itself.

    The special tokens and the pre-tokens of the blocks, one block after the other, are those of the whole
    text, however it is divided into `parts`. A block has about `block_chars` characters; it is longer only
    where no safe cut exists, as in a very long word. Then the next attempt waits until the text has doubled,
    so that the work stays linear.
    """
    waiting: list[str] = []
    size, enough = 0, block_chars
    for part in _slices(parts, block_chars):
        waiting.append(part)
        size += len(part)
        if size < enough:
            continue
        text = "".join(waiting)
        cut = _last_safe_cut(text, special_tokens)
        if cut:
            yield text[:cut]
        waiting = [text[cut:]]
        size = len(text) - cut
        enough = max(block_chars, 2 * size)
    if size:
        yield "".join(waiting)


def _slices(parts: Iterable[str], length: int) -> Iterator[str]:
    for part in parts:
        for start in range(0, len(part), length):
            yield part[start : start + length]


def _last_safe_cut(text: str, special_tokens: Collection[str]) -> int:
    """Return the last safe place to cut `text`, of which more may follow, or 0 if there is none.

    A cut is safe if it is a boundary of pre-tokens in any context (see `_BOUNDARY`) and lies inside no
    occurrence of a special token, not even one that another special token overlaps: then each match of the
    leftmost-longest search for special tokens lies wholly on one side, and neither side's search sees the
    other. An occurrence around a cut is wholly in `text` if the longest special token fits behind the cut.
    """
    longest = max(map(len, special_tokens), default=1)
    end = max(0, len(text) - longest + 2)
    while match := _BOUNDARY.search(text, 0, end):
        end = match.start()
        if not any(
            special in text[max(0, end - len(special) + 1) : end + len(special) - 1] for special in special_tokens
        ):
            return end
    return 0


def repair_surrogates(parts: Iterable[str]) -> Iterator[str]:
    """Yield `parts` as valid Unicode: a surrogate pair becomes its character, a lone surrogate U+FFFD.

    Python strings may hold surrogates, UTF-8 may not. This is what tiktoken does with them. A pair may lie in
    two parts.
    """
    high = ""
    for part in parts:
        text = high + part
        high = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        yield _without_surrogates(text.removesuffix(high) if high else text)
    if high:
        yield "\ufffd"


def _without_surrogates(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


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
