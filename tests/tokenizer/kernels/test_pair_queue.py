"""The queue of pairs against sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer.kernels.jit import available
from transformerlm.tokenizer.kernels.pair_queue import (
    NO_PAIR,
    NUM_DRAWERS,
    TOKEN,
    PairQueue,
    drawer_of,
    new_queue,
    put,
    take,
)

pytestmark = pytest.mark.skipif(not available(), reason="numba compiles nothing")

counts_of_any_size = st.one_of(st.integers(1, 5), st.integers(1, 2000), st.integers(1, 2**63 - 1))


def queue_of(tokens: list[bytes], counts: dict[tuple[int, int], int]) -> PairQueue:
    """Return a queue of pairs of tokens, the pair's number being its place in `counts`."""
    table = np.zeros(len(tokens), TOKEN)
    table["length"] = [len(token) for token in tokens]
    table["start"] = np.cumsum(table["length"]) - table["length"]
    table["head"] = [int.from_bytes(token[:8].ljust(8, b"\0"), "big") for token in tokens]
    queue = new_queue(np.frombuffer(bytearray(b"".join(tokens)), np.uint8), table, len(counts))
    for pair, ((left, right), count) in enumerate(counts.items()):
        queue.pairs[pair] = (left, right, count)
        put(queue, pair)
    return queue


@given(counts_of_any_size, counts_of_any_size)
def test_a_greater_count_has_no_lower_drawer(first: int, second: int) -> None:
    lower, higher = sorted([first, second])
    assert 0 < drawer_of(lower) <= drawer_of(higher) < NUM_DRAWERS


def test_drawers_are_exact_for_small_counts_and_reach_to_the_greatest() -> None:
    assert [drawer_of(count) for count in range(256)] == list(range(256))
    assert drawer_of(2**63 - 1) == NUM_DRAWERS - 1


tokens = st.lists(st.binary(max_size=12).map(lambda token: token[:6] * 3 + token), min_size=2, max_size=20, unique=True)


@given(tokens, st.data())
def test_pairs_come_out_in_order_although_counts_fall_while_they_wait(tokens: list[bytes], data: st.DataObject) -> None:
    token = st.integers(0, len(tokens) - 1)
    counts = data.draw(st.dictionaries(st.tuples(token, token), counts_of_any_size, max_size=60))
    pairs = list(counts)
    queue = queue_of(tokens, counts)
    taken: list[int] = []
    while True:
        pair = take(queue)
        waiting = [number for number in range(len(pairs)) if counts[pairs[number]] > 0 and number not in taken]
        if pair == NO_PAIR:
            assert not waiting
            return
        best = max(waiting, key=lambda number: (counts[pairs[number]], *(tokens[side] for side in pairs[number])))
        assert pair == best
        taken.append(pair)
        for number in data.draw(st.sets(st.sampled_from(waiting), max_size=2)) - {pair}:
            counts[pairs[number]] = data.draw(st.integers(0, counts[pairs[number]]))
            queue.pairs[number]["count"] = counts[pairs[number]]
