"""The encoder's cache: what is remembered where, and that it changes no id."""

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from transformerlm.tokenizer import compiled
from transformerlm.tokenizer.bpe import merge_ids, merge_table
from transformerlm.tokenizer.compiled import CompiledCodec
from transformerlm.tokenizer.kernels import encoder
from transformerlm.tokenizer.kernels.encoder import ENTRY_WORDS, LINE_WORDS, EncodeTables, Memory
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.keys import piece_key
from transformerlm.tokenizer.kernels.merger import SHORT, merge_tables, token_numbers
from transformerlm.tokenizer.kernels.pretokenize_regex import rules_of
from transformerlm.tokenizer.kernels.special_tokens import special_tokens_of
from transformerlm.tokenizer.kernels.whole_words import whole_words_of
from transformerlm.tokenizer.pretokenize import GPT2, pretokenize
from transformerlm.tokenizer.validation import TokenIds

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

MERGES = [(b"a", b"b"), (b"c", b"d"), (b"ab", b"cd"), (b"e", b"e"), (b"ee", b"ee")]
NUMBER_OF = token_numbers(left + right for left, right in MERGES)


class Cache:
    """A cache of two lines, next door to each other, to which `encode` sends all pieces."""

    def __init__(self, dtype: type = np.uint16, left_out: bytes = b"") -> None:
        self.tables = EncodeTables(
            merge_tables(MERGES, NUMBER_OF),
            np.arange(256 + len(MERGES), dtype=dtype),
            np.array([byte in left_out for byte in range(256)][: 256 if left_out else 0], np.bool_),
            rules_of(GPT2),
            whole_words_of({}),
        )
        arena, numbers, rest = np.zeros(1000, np.uint32), np.zeros(SHORT, np.int64), np.zeros(SHORT, np.uint8)
        self.memory = Memory(np.zeros(2 * LINE_WORDS, np.uint64), arena, np.zeros(1, np.int64), numbers, rest)

    def encode(self, pieces: Sequence[bytes], line: int = 0) -> tuple[int, list[int]]:
        """Return at which piece the look-up stopped, and the ids of those before it."""
        text = b"".join(pieces)
        chunk = np.frombuffer(bytearray(text + b" " * 64), np.uint8)
        starts = np.cumsum([0, *map(len, pieces)])
        keys = np.empty((len(pieces), 3), np.uint64)
        for number, piece in enumerate(pieces):
            low, high = piece_key(chunk, starts[number], len(piece))
            keys[number] = np.uint64(low), np.uint64(high), np.uint64(line * LINE_WORDS)
        ids = np.zeros(len(text) + encoder.SLACK, self.tables.ids.dtype)
        stop, count = encoder.look_up(chunk, starts, 0, len(pieces), keys, self.tables, self.memory, ids, 0)
        return stop, ids[:count].tolist()

    def entries(self) -> list[bytes]:
        """Return the pieces of up to 15 bytes in the four entries, in order; empty for a free one."""
        words = self.memory.lines.reshape(-1, ENTRY_WORDS)[:, :2]
        return [entry.tobytes()[: entry.tobytes()[15]] for entry in words]


def expected(pieces: Sequence[bytes]) -> list[int]:
    return [number for piece in pieces for number in merge_ids(list(piece), merge_table(MERGES, NUMBER_OF))]


def test_a_full_line_sends_its_pieces_next_door() -> None:
    cache = Cache()
    pieces = [b"abcd", b"b", b"abc", b"dee", b"eeee"]
    for line, order in ((0, [0, 1, 2, 3]), (1, [2, 3, 0, 1])):
        cache.memory.lines[:] = 0
        for _ in range(2):
            assert cache.encode(pieces[:4], line) == (4, expected(pieces[:4]))
            assert cache.entries() == [pieces[i] for i in order]
    assert cache.encode(pieces[4:], line=1) == (1, expected(pieces[4:]))
    assert cache.entries() == [b"abc", b"dee", b"abcd", b"eeee"], "the second of the own line gives way"


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_any_pieces_through_a_tiny_cache(dtype: type) -> None:
    """Every entry gives way again and again, and the arena is emptied many times."""
    rng = random.Random(0)
    cache = Cache(dtype)
    words = [bytes(rng.choices(b"abcdefgh", k=rng.choice([1, 2, 5, 9, 15, 16, 40, SHORT]))) for _ in range(12)]
    for _ in range(200):
        pieces = rng.choices(words, k=20)
        assert cache.encode(pieces, line=rng.randrange(2)) == (20, expected(pieces))


def test_a_long_piece_is_left_to_the_caller_until_it_is_remembered() -> None:
    cache = Cache()
    assert cache.encode([b"ab", b"e" * (SHORT + 1), b"cd"]) == (1, expected([b"ab"]))


@pytest.mark.parametrize("length", [SHORT, SHORT + 1, encoder.MAX_REMEMBERED, encoder.MAX_REMEMBERED + 1, 10_000])
def test_long_pieces_between_short_ones(length: int) -> None:
    cache = Cache()
    text = (b"abcd " + b"e" * length + b" ee ") * 3
    memory, ids, ends = encoder.new_memory(), np.zeros(len(text) + encoder.SLACK, np.uint16), np.zeros(1, np.int64)
    specials = special_tokens_of({})
    count = encoder.encode_texts(
        np.frombuffer(text, np.uint8), np.array([len(text)]), specials, cache.tables, memory, ids, ends
    )
    assert ids[:count].tolist() == expected([piece.encode() for piece in pretokenize(text.decode())])
    assert ends.tolist() == [count]


def test_a_burst_of_threads_leaves_no_more_memories_than_can_be_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = {value: bytes([value]) for value in range(256)}
    token_ids = TokenIds({token: token_id for token_id, token in vocab.items()})
    codec = CompiledCodec(vocab, token_ids, [], pattern=GPT2, whole_words={})
    together = threading.Barrier(6)
    encode_texts = compiled.encode_texts

    def encode_at_once(*arguments: Any) -> int:
        together.wait(timeout=60)
        return encode_texts(*arguments)

    monkeypatch.setattr(compiled, "encode_texts", encode_at_once)
    monkeypatch.setattr(compiled, "worker_count", lambda _workers: 2)
    no_specials = special_tokens_of({})
    with ThreadPoolExecutor(6) as executor:
        found = list(executor.map(lambda _: codec.encode([b"some text"], no_specials)[0].tolist(), range(6)))
    assert found == [list(b"some text")] * 6
    assert len(codec._free_memories) == 2
