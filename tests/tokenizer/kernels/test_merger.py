"""The compiled merging of one pre-token against the plain one."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformerlm.tokenizer import learn_merges
from transformerlm.tokenizer.bpe import MergeTable, merge_ids, merge_table
from transformerlm.tokenizer.io import read_tokenizer_files
from transformerlm.tokenizer.kernels import merger
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.merger import MergeTables, merge_tables, token_numbers

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

Merges = Sequence[tuple[bytes, bytes]]
UNTOUCHED = -7
FENCE = 8  # items on either side of where the kernels may write


def merge_with(merge: Any, piece: bytes, tables: MergeTables) -> list[int]:
    """Return what a merging kernel makes of a piece in the middle of other bytes; nothing else may be written to."""
    buffer = np.frombuffer(bytearray(b"a" * FENCE + piece + b"a" * FENCE), np.uint8)
    room = np.full(len(piece) + 2 * FENCE, UNTOUCHED)
    count = merge(buffer, FENCE, len(piece), tables, room[FENCE : FENCE + len(piece)])
    assert (room[:FENCE] == UNTOUCHED).all()
    assert (room[FENCE + len(piece) :] == UNTOUCHED).all()
    return room[FENCE : FENCE + count].tolist()


def numbers_of(merges: Merges) -> dict[bytes, int]:
    return token_numbers(left + right for left, right in merges)


def table_of(merges: Merges) -> MergeTable:
    """The plain table, with the numbers of the kernels as ids."""
    return merge_table(merges, numbers_of(merges))


def tables_of(merges: Merges) -> MergeTables:
    return merge_tables(merges, numbers_of(merges))


def random_merges(rng: random.Random, alphabet: bytes, count: int) -> list[tuple[bytes, bytes]]:
    """Return merges that no training would give: several for one token, parts that are made later or never."""
    tokens = [bytes([byte]) for byte in alphabet]
    merges = []
    for _ in range(count):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) <= 20:
            merges.append((left, right))
            tokens.append(left + right)
    rng.shuffle(merges)
    return merges


@given(
    alphabet=st.sampled_from([b"a", b"ab", b"abc", b"\x00\xff", bytes(range(256))]),
    num_merges=st.integers(0, 150),
    length=st.one_of(st.integers(0, 40), st.integers(merger.SHORT - 2, merger.SHORT + 2), st.just(500)),
    seed=st.integers(0, 2**32),
)
def test_any_merges_of_any_piece(alphabet: bytes, num_merges: int, length: int, seed: int) -> None:
    rng = random.Random(seed)
    merges = random_merges(rng, alphabet, num_merges)
    piece = bytes(rng.choices(alphabet, k=length))
    tables = tables_of(merges)
    expected = merge_ids(list(piece), table_of(merges))
    assert merge_with(merger.merge_short, piece, tables) == expected
    assert merge_with(merger.merge_long, piece, tables) == expected


pieces = st.text(alphabet="abc", min_size=1, max_size=60).map(str.encode)


@given(st.dictionaries(pieces, st.integers(1, 5), max_size=6), st.text(alphabet="abcd", max_size=300))
@example({}, "no merges")
def test_learned_merges(counts: dict[bytes, int], text: str) -> None:
    merges = learn_merges(counts, 60)
    expected = merge_ids(list(text.encode()), table_of(merges))
    assert merge_with(merger.merge_short, text.encode(), tables_of(merges)) == expected
    assert merge_with(merger.merge_long, text.encode(), tables_of(merges)) == expected


@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("merge", ["merge_short", "merge_long"])
def test_overlapping_pairs_are_joined_from_the_left(merge: str, length: int) -> None:
    merges = [(b"a", b"a"), (b"aa", b"a"), (b"aa", b"aa"), (b"aaaa", b"aaaa")]
    expected = merge_ids(list(b"a" * length), table_of(merges))
    assert merge_with(getattr(merger, merge), b"a" * length, tables_of(merges)) == expected


@pytest.fixture(scope="module")
def gpt2_merges(data: Path) -> Merges:
    return read_tokenizer_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt")[1]


def test_the_merges_of_gpt2(gpt2_merges: Merges, data: Path) -> None:
    tables, table = tables_of(gpt2_merges), table_of(gpt2_merges)
    text = (data / "udhr_multilingual.txt").read_bytes()
    rng = random.Random(0)
    for _ in range(1000):
        start, length = rng.randrange(len(text)), rng.choice([rng.randrange(20), rng.randrange(200)])
        piece = text[start : start + length]
        expected = merge_ids(list(piece), table)
        assert merge_with(merger.merge_short, piece, tables) == expected
        assert merge_with(merger.merge_long, piece, tables) == expected


@pytest.mark.parametrize("alphabet", [b"a", b"\n", b"0123456789", b"abcdefghijklmnopqrstuvwxyz"])
def test_a_very_long_piece(gpt2_merges: Merges, alphabet: bytes) -> None:
    piece = bytes(random.Random(0).choices(alphabet, k=100_000))
    expected = merge_ids(list(piece), table_of(gpt2_merges))
    assert merge_with(merger.merge_long, piece, tables_of(gpt2_merges)) == expected


def test_tables_of_many_merges() -> None:
    """Numbers beyond 16 bits, and a hash table of as many entries."""
    rng = random.Random(0)
    pairs = [(bytes([left]), bytes([right])) for left in range(256) for right in range(256)]
    rng.shuffle(pairs)
    merges = pairs + [(left + right, bytes([third])) for third in (0, 255) for left, right in pairs[:20_000]]
    tables, table = tables_of(merges), table_of(merges)
    for length in (3, 30, 300):
        for _ in range(50):
            piece = rng.randbytes(length).replace(b"\x07", b"\x00")
            expected = merge_ids(list(piece), table)
            assert merge_with(merger.merge_short, piece, tables) == expected
            assert merge_with(merger.merge_long, piece, tables) == expected
