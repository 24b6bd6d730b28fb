"""Counting against plain Python: in any bytes, at the borders of chunks, for very many and very long pre-tokens."""

import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformerlm.tokenizer import bpe as bpe_reference
from transformerlm.tokenizer.kernels import counter as counter_module
from transformerlm.tokenizer.kernels.chunks import CHUNK
from transformerlm.tokenizer.kernels.counter import PieceCounter, Words
from transformerlm.tokenizer.kernels.jit import available

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

PARTS = [
    *(b"the", b" the", b" a", b"'ll", b"'s", b"42", b" 42", b"\n", b"  ", b"\t", b".", b"...", b" -"),
    *("é".encode(), "你好".encode(), "\u3000".encode(), "\xa0".encode(), "🙂".encode(), "٣".encode()),
    *(b"\xff", b"\xe4\xbd", b"\xc0\x80", b"\0", b"antidisestablishmentarianism", b" internationalization"),
    *(b"<|end|>", b"<|end|><|end|>", b"<|", b"<"),
]
SPECIAL = ["<|end|>", "<|end|><|end|>"]
texts = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)


def counted(texts: list[bytes], special_tokens: list[str] | None = None) -> Counter[bytes]:
    counter = PieceCounter([token.encode() for token in special_tokens or []])
    counter.count(b"".join(texts), np.cumsum([len(text) for text in texts]).tolist())
    return counter.words().counter()


@given(st.lists(texts, max_size=5))
def test_the_counts_are_those_of_plain_python(texts: list[bytes]) -> None:
    assert counted(texts, SPECIAL) == bpe_reference.count_pretokens(texts, SPECIAL)
    assert counted(texts) == bpe_reference.count_pretokens(texts)


@settings(max_examples=60)
@given(st.integers(-20, 20), st.sampled_from([1, 2, 3]), st.sampled_from(PARTS), texts)
def test_a_chunk_may_end_anywhere(shift: int, chunks: int, filling: bytes, text: bytes) -> None:
    text = (filling * CHUNK)[: chunks * CHUNK + shift] + text
    assert counted([text], SPECIAL) == bpe_reference.count_pretokens([text], SPECIAL)


@pytest.mark.parametrize("unit", [b"a", b"\n", b"7", b"!", "你".encode(), b" ", b"\xff", b"\xe4"])
def test_one_word_of_a_megabyte(unit: bytes) -> None:
    word = unit * (1_000_000 // len(unit))
    assert counted([b"x." + word, word]) == bpe_reference.count_pretokens([b"x." + word, word])


def test_many_distinct_pretokens_short_and_long() -> None:
    draw = random.Random(0)
    words = [draw.randbytes(draw.choice([3, 20, 40])).hex() for _ in range(60_000)]
    text = " ".join(words + words[::2]).encode()
    counts = counted([text])
    assert counts == bpe_reference.count_pretokens([text])
    assert len(counts) > 60_000


def test_counters_add_up() -> None:
    draw = random.Random(0)
    halves = [b" ".join(draw.choices(PARTS, k=20_000) + [draw.randbytes(30) for _ in range(2_000)]) for _ in range(2)]
    counters = [PieceCounter() for _ in halves]
    for counter, half in zip(counters, halves, strict=True):
        counter.count(half)
    counters[0].add(pickle.loads(pickle.dumps(counters[1].table())))
    assert counters[0].words().counter() == bpe_reference.count_pretokens(halves)
    assert counters[1].words().counter() == bpe_reference.count_pretokens(halves[1:])


def test_a_count_may_need_more_than_32_bits() -> None:
    first, second = PieceCounter(), PieceCounter()
    first.count(b"abc" + b" abcdefghijklmnopqrstuvwxyz")
    for _ in range(30):  # each addition makes a Fibonacci number
        second.add(first.table())
        first.add(second.table())
    fibonacci = {b"abc": 2_504_730_781_961, b" abcdefghijklmnopqrstuvwxyz": 2_504_730_781_961}
    assert first.words().counter() == fibonacci


def test_long_pretokens_with_the_same_key_are_told_apart() -> None:
    low, high, one = np.uint64(1), counter_module.LONG | np.uint64(5), np.uint64(1)
    counter = PieceCounter()
    counter._grow(np.array([0, 0, 10, 1000]))
    table = counter._table
    pieces = [b"a" * 20, b"a" * 19 + b"b", b"a" * 21, b"b" + b"a" * 19, b"a" * 20]
    for piece in pieces:
        buffer = np.frombuffer(bytearray(piece), np.uint8)
        counter_module.add_count(table, low, high, np.uint64(3), one, buffer, 0, len(piece))
    assert counter.words().counter() == Counter(pieces)


@pytest.mark.timeout(60)
def test_ctrl_c_while_a_kernel_runs_is_an_exception_like_any_other() -> None:
    program = """
import signal
from transformerlm.tokenizer.kernels.counter import PieceCounter

counter, text = PieceCounter(), b" ".join(b"%d" % number for number in range(3_000_000))
counter.count(b"compiled or loaded")
for tenths in range(1, 6):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, tenths * 0.02)
    try:
        counter.count(text)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    assert "interrupted" in result.stdout


def test_nothing_is_counted_of_no_text() -> None:
    counter = PieceCounter([b"<|end|>"])
    counter.count(b"")
    counter.count(b"", [])
    counter.count(b"<|end|>", [0, 0, 7, 7])
    assert counter.words().counter() == {}


def test_words_are_a_dictionary_and_back() -> None:
    counts = Counter({b"a": 3, b" longer than sixteen bytes": 2**40, b"\0": 1})
    assert Words.of(counts).counter() == counts
    assert Words.of({}).counter() == {}
