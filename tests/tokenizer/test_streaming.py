"""Laws of streaming: however text is divided, its pre-tokens, special tokens and characters are the same."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, product, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import StreamingDecoder, Tokenizer, streaming
from transformerlm.tokenizer.pretokenize import pretokenize, special_pattern, split_special
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.tokenizer.utf8 import to_bytes, to_text, valid_unicode

SPECIAL_SETS = [[], ["<|eot|>", "<|eot|><|eot|>"], ["a b", "b\n", "ab"], ["aa"], ["'s", " \n", "é1é"]]
PIECES = [
    "<|eot|>",
    "<|eo",
    "t|>",
    "a b",
    "b\n",
    "'",
    "'l",
    "l",
    "'s",
    " ",
    "  ",
    "\n",
    "aa",
    "é",
    "1",
    ".",
    "你",
]
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


Divide = Callable[[str, Sequence[int]], list[str]]


def tokens_of(blocks: Sequence[str], special_tokens: Sequence[str]) -> list[tuple[bool, str]]:
    """The pre-tokens (False) and special tokens (True) of blocks, each taken by itself."""
    pattern = special_pattern(special_tokens)
    found: list[tuple[bool, str]] = []
    for block in blocks:
        for place, part in enumerate(split_special(block, pattern)):
            found += [(True, part)] if place % 2 else [(False, piece) for piece in pretokenize(part)]
    return found


@given(
    text=texts,
    places=st.lists(st.integers(0, 10**6)),
    special_tokens=st.sampled_from(SPECIAL_SETS),
    block_chars=st.integers(1, 12),
)
def test_blocks_have_the_tokens_of_the_whole(
    divide: Divide, text: str, places: list[int], special_tokens: list[str], block_chars: int
) -> None:
    blocks = list(safe_blocks(divide(text, places), special_tokens, block_chars))
    assert "".join(blocks) == text
    assert tokens_of(blocks, special_tokens) == tokens_of([text], special_tokens)


@pytest.mark.parametrize("special_tokens", [["a b"], ["b.", "a b"], ["  a"], [". b", "b"]])
def test_blocks_of_all_short_texts_have_the_tokens_of_the_whole(special_tokens: list[str]) -> None:
    for text in chain.from_iterable(product("a b.", repeat=length) for length in range(6)):
        whole = tokens_of(["".join(text)], special_tokens)
        for block_chars in range(1, 5):
            assert tokens_of(list(safe_blocks(text, special_tokens, block_chars)), special_tokens) == whole


@given(st.text(max_size=40), st.integers(1, 5))
def test_blocks_of_any_unicode_have_the_tokens_of_the_whole(text: str, block_chars: int) -> None:
    assert tokens_of(list(safe_blocks(text, (), block_chars)), []) == tokens_of([text], [])


@pytest.mark.parametrize("unit", ["The cat's 12 hats. ", "1a", "a.", "你好。", "नमस्ते ", "x<|eot|>y "])
def test_blocks_stay_small(unit: str) -> None:
    blocks = list(safe_blocks([unit * 1000], ["<|eot|>"], 100))
    assert max(map(len, blocks)) <= 200


def test_endless_text_is_cut_as_it_comes() -> None:
    assert len(list(islice(safe_blocks(repeat("some words ")), 5))) == 5


@pytest.mark.parametrize("text", ["a" * 50_000, " " * 50_000, "<|eot|>" * 7_000])
def test_text_without_a_safe_cut_takes_linear_work(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    last_safe_cut = streaming._last_safe_cut

    def counting(text: str, special_tokens: Sequence[str], pattern: str) -> int:
        nonlocal looked_at
        looked_at += len(text)
        return last_safe_cut(text, special_tokens, pattern)

    monkeypatch.setattr(streaming, "_last_safe_cut", counting)
    assert list(safe_blocks(iter(text), ["<|eot|>"], 64)) == [text]
    assert looked_at <= 2 * len(text)


surrogates = st.text(alphabet="a1 \n.\ud83d\ude00\udc00\ud800\ud835é\ufffd😀𝐀", max_size=20)


@given(text=surrogates, places=st.lists(st.integers(0, 100)), length=st.integers(1, 9))
def test_blocks_with_surrogates_have_the_tokens_of_the_whole(
    divide: Divide, text: str, places: list[int], length: int
) -> None:
    blocks = list(safe_blocks(divide(text, places), (), length))
    assert "".join(blocks) == text
    assert tokens_of([valid_unicode(block) for block in blocks], []) == tokens_of([valid_unicode(text)], [])


# White space of one, two and three bytes, its first and last bytes alone, letters, numbers, signs, what is not UTF-8.
CHARACTERS = [
    " ",
    "\n",
    "\u0085",
    "\u00a0",
    "\u1680",
    "\u2003",
    "\u205f",
    "\u3000",
    "a",
    "1",
    ".",
    "'",
    "s",
    "é",
    "٣",
    "你",
    "😀",
]
BYTES = [*map(str.encode, CHARACTERS), b"\xe3", b"\x80", b"\xc2", b"\xff", b"\xed\xa0\x80", b"<|eot|>"]
byte_texts = st.lists(st.sampled_from(BYTES), max_size=30).map(b"".join) | st.binary(max_size=40)


@given(data=byte_texts, parts=st.integers(1, 9), length=st.integers(1, 9))
def test_blocks_of_bytes_have_the_tokens_of_the_whole(data: bytes, parts: int, length: int) -> None:
    blocks = list(safe_blocks([data[at : at + parts] for at in range(0, len(data), parts)], ["<|eot|>"], length))
    assert b"".join(blocks) == data
    assert tokens_of([to_text(block) for block in blocks], ["<|eot|>"]) == tokens_of([to_text(data)], ["<|eot|>"])
    assert to_bytes(to_text(data)) == data


@pytest.mark.parametrize("unit", ["The cat's 12 hats. ", "1.", "a.", "你好。\n", "नमस्ते \n"])
def test_blocks_of_bytes_stay_small(unit: str) -> None:
    blocks = list(safe_blocks([unit.encode() * 1000], ["<|eot|>"], 100))
    assert max(map(len, blocks)) <= 200


@given(surrogates)
def test_surrogates_are_repaired_as_in_tiktoken(text: str) -> None:
    assert valid_unicode(text) == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    valid_unicode(text).encode()


class ByteIds:
    """A tokenizer whose ids are bytes."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(ids)


@given(st.lists(st.binary(max_size=4) | st.sampled_from("é你😀").map(str.encode)), st.integers(1, 5))
def test_streamed_text_joins_to_the_decoded_whole(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    decoder = StreamingDecoder(ByteIds())
    streamed = [decoder.push(data[start : start + step]) for start in range(0, len(data), step)]
    assert "".join(streamed) + decoder.flush() == data.decode("utf-8", "replace")


@given(st.text(max_size=10))
def test_no_half_character_is_streamed(text: str) -> None:
    decoder = StreamingDecoder(ByteIds())
    streamed = [decoder.push([byte]) for byte in text.encode()]
    assert [part for part in streamed if part] == list(text)
    assert decoder.flush() == ""


def test_the_decoder_starts_anew_after_flush(toy: Tokenizer) -> None:
    decoder = StreamingDecoder(toy)
    assert decoder.push([0xE4, 0xBD]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(toy.encode("the")) == "the"
