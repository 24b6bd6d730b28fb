"""A computed permutation is one, for any size, and depends on its seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.training.permutation import permuted


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64))
def test_permuted_is_a_bijection(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(permuted(np.arange(size), size, seed=(seed, 1))), np.arange(size))


@given(
    size=st.integers(1, 2**40), numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), seed=st.integers(0)
)
def test_permuted_stays_inside_and_apart_for_any_size(size: int, numbers: list[int], seed: int) -> None:
    distinct = np.array(sorted({number % size for number in numbers}))
    found = permuted(distinct, size, seed=(seed % 2**64,))
    assert found.dtype == np.int64
    assert ((found >= 0) & (found < size)).all()
    assert len(set(found.tolist())) == len(distinct)


def test_a_permutation_of_some_is_that_of_all() -> None:
    whole = permuted(np.arange(1000), 1000, seed=(7, 0))
    assert np.array_equal(permuted(np.array([3, 999, 0]), 1000, seed=(7, 0)), whole[[3, 999, 0]])


def test_a_permutation_mixes_and_depends_on_the_seed() -> None:
    first, second = (permuted(np.arange(10_000), 10_000, seed=(seed, 0)) for seed in (1, 2))
    assert np.mean(first == second) < 0.01
    for order in (first, second):
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
        assert np.mean(np.diff(order) == 1) < 0.01
