"""The scanner finds the pre-tokens that the pattern finds: in any bytes, wherever blocks end, and reads no further."""

import os
import random
import signal
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.intrinsics import BLOCK
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import LOOKAHEAD, PADDING, scan
from transformerlm.tokenizer.unicode.classes import class_table

GPT2_PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)  # as published

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

ROOT = Path(__file__).parents[3]

CONTRACTIONS = [b"'", b"'", b"'s", b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d", *(bytes([c]) for c in b"stdmlvreSx ")]
LETTERS = [character.encode() for character in ("a", "Z", "é", "ß", "я", "ב", "你", "ệ", "ﬁ", "𐐀", "𠀀")]
NUMBERS = [character.encode() for character in ("0", "9", "²", "½", "٣", "९", "Ⅷ", "㊿", "𝟗", "𐒠")]
OTHERS = [character.encode() for character in (".", "_", "\0", "\x1c", "\x7f", "«", "\u0301", "\u200b", "。", "🙂")]
WHITE_SPACE = [character.encode() for character in " \t\n\v\f\r \x85\xa0\u1680\u2003\u2028\u3000  "]
MALFORMED = [
    *(b"\x80", b"\xbf", b"\xff", b"\xfe", b"\xf8\x88\x80\x80\x80"),  # never the start of a character
    *(b"\xc0\x80", b"\xc1\xa1", b"\xe0\x80\xa0", b"\xe0\x9f\xbf", b"\xf0\x80\x80\xa0", b"\xf0\x8f\xbf\xbf"),  # overlong
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa1\x80\xed\xb0\x80"),  # surrogates
    *(b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),  # beyond U+10FFFF
    *(b"\xc3", b"\xc2", b"\xe3\x80", b"\xe3", b"\xe4\xbd", b"\xf0\x9f\x99", b"\xf0\x9d", b"\xf4"),  # truncated
    *(b"\xf4\x8f\xbf\xbf", b"\xee\x80\x80", b"\xed\x9f\xbf", b"\xdf\xbf", b"\xc2\x80"),  # well-formed, at the limits
]
ALPHABETS = {
    "contractions": CONTRACTIONS,
    "white space": [*WHITE_SPACE, b"a", b"."],
    "characters": [*LETTERS, *NUMBERS, *OTHERS, *WHITE_SPACE],
    "malformed": [*MALFORMED, b" ", b"a", b"1", "\u3000".encode()],
    "everything": [*CONTRACTIONS, *LETTERS, *NUMBERS, *OTHERS, *WHITE_SPACE, *MALFORMED],
    "bytes": [bytes([byte]) for byte in range(256)],
}
texts = st.sampled_from(sorted(ALPHABETS)).flatmap(
    lambda name: st.lists(st.sampled_from(ALPHABETS[name]), max_size=3 * BLOCK).map(b"".join)
)


def starts_by_scanner(text: bytes) -> list[int]:
    buffer = np.full(len(text) + PADDING, ord(" "), np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    starts = np.empty(len(text), np.int64)
    return starts[: scan(buffer, len(text), class_table(), starts)].tolist()


def starts_by_pattern(text: bytes) -> list[int]:
    pieces = GPT2_PATTERN.findall(text.decode("utf-8", "surrogateescape"))
    ends = accumulate((len(piece.encode("utf-8", "surrogateescape")) for piece in pieces), initial=0)
    return list(ends)[:-1]


@given(texts)
def test_starts_are_those_of_the_pattern(text: bytes) -> None:
    assert starts_by_scanner(text) == starts_by_pattern(text)


@pytest.mark.parametrize("name", ALPHABETS)
def test_starts_are_those_of_the_pattern_in_many_texts(name: str) -> None:
    choose = random.Random(name)
    for _ in range(500):
        text = b"".join(choose.choices(ALPHABETS[name], k=choose.randrange(3 * BLOCK)))
        assert starts_by_scanner(text) == starts_by_pattern(text), text


SNIPPETS = [
    b"we'll they've I'm don't you're she'd it's ",
    b"x'l x'v x'r x'S x''s x' s x'lll x'res 's 'll\n've '\xc5\xbf 's\xcc\x81",
    b"a  b   c\n\n d \t\n",
    b"a \xc2\xa0 b\xe3\x80\x80\xe3\x80\x80c \xc2\x85\xe2\x80\x83.\xe3\x80\x80 \xe3\x80\x80x",
    "é你𐐀 ²٣𝟗 «。🙂 x\u3000你 \u20031 \x85🙂".encode(),
    b" \xe3\x80 \xf0\x9f\x99 \xc3",
]


@pytest.mark.parametrize("snippet", SNIPPETS)
@pytest.mark.parametrize("before", [b"a", b" ", b"1", b".", "你".encode(), "\u3000".encode(), b"\xff"])
def test_it_does_not_matter_where_a_block_ends(snippet: bytes, before: bytes) -> None:
    for offset in range(BLOCK + 1):
        text = b"-" * offset + before + snippet
        for behind in (b"", b"z" * BLOCK, b" " * BLOCK):
            assert starts_by_scanner(text + behind) == starts_by_pattern(text + behind), text + behind


@given(texts, st.integers(min_value=0))
def test_what_follows_has_a_say_in_the_last_bytes_only(text: bytes, place: int) -> None:
    cut = place % (len(text) + 1)
    certain = max(0, cut - LOOKAHEAD)
    whole, beginning = starts_by_scanner(text), starts_by_scanner(text[:cut])
    assert [at for at in beginning if at < certain] == [at for at in whole if at < certain]


def test_what_follows_has_a_say_in_the_last_bytes_only_at_every_cut() -> None:
    choose = random.Random(0)
    for _ in range(50):
        text = b"".join(choose.choices(ALPHABETS["everything"], k=2 * BLOCK))
        whole = starts_by_scanner(text)
        for cut in range(LOOKAHEAD, len(text)):
            certain = cut - LOOKAHEAD
            assert [at for at in starts_by_scanner(text[:cut]) if at < certain] == [at for at in whole if at < certain]


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "udhr_multilingual.txt", "gpt2_vocab.json"])
def test_starts_are_those_of_the_pattern_in_files(data: Path, name: str) -> None:
    text = (data / name).read_bytes()
    assert starts_by_scanner(text) == starts_by_pattern(text)


def test_starts_are_those_of_the_pattern_in_a_whole_corpus(whole_corpus: bytes) -> None:
    assert starts_by_scanner(whole_corpus) == starts_by_pattern(whole_corpus)


@pytest.mark.parametrize(
    "unit", [b"a", b"\n", b" ", b"7", b"'", b"'s", "你".encode(), "\u3000".encode(), b"\x80", b"\xf0"]
)
def test_a_megabyte_of_one_thing_takes_one_pass(unit: bytes) -> None:
    text = unit * (1_000_000 // len(unit))
    assert starts_by_scanner(text) == starts_by_pattern(text)


def test_an_empty_text_has_no_starts() -> None:
    assert starts_by_scanner(b"") == []


# The last thing that this program does is what the scanner must not do: it reads the byte behind the fence.
FENCED = r"""
import ctypes, mmap, random
import numpy as np
from transformerlm.tokenizer.kernels.pretokenize_gpt2 import PADDING, scan
from transformerlm.tokenizer.unicode.classes import class_table

PROT_NONE = 0
memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
page = np.frombuffer(memory, np.uint8, count=mmap.PAGESIZE)
fence = page.ctypes.data + mmap.PAGESIZE
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), mmap.PAGESIZE, PROT_NONE) == 0

choose = random.Random(0)
middles = [b"a", b" ", b"\xff", b"'", b"\xe3\x80\x80", b"\xf4\x90\x80\x80"]
ends = [b"", b"a", b" ", b"'", b"'l", b"'r", b"\xc3", b"\xe3\x80", b"\xe3\x80\x80", b"\xf0\x9f\x99"]
for length in range(300):
    for end in ends:
        text = b"".join(choose.choices(middles, k=length)) + end
        buffer = page[mmap.PAGESIZE - len(text) - PADDING :]
        buffer[:] = ord(" ")
        buffer[: len(text)] = np.frombuffer(text, np.uint8)
        scan(buffer, len(text), class_table(), np.empty(len(text), np.int64))
print("scanned", flush=True)
ctypes.string_at(fence, 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="makes memory unreadable in Linux's way")
def test_nothing_is_read_outside_the_buffer_and_the_table() -> None:
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1"}  # for what is read with brackets; the fence is for the rest
    words = [sys.executable, "-c", FENCED]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("scanned\n", -signal.SIGSEGV), done.stderr
