"""Batches are a function of (seed, step), and an epoch reads everything once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.token_files.dataset import TokenDataset
from transformerlm.token_files.index import read_info
from transformerlm.token_files.stream import TokenStream
from transformerlm.training.data import BatchLoader, get_batch, validation_windows
from transformerlm.utils.errors import ConfigError, DataError

CPU = torch.device("cpu")


def loader(
    tokens: np.ndarray | list[np.ndarray], *, batch_size: int = 3, context_length: int = 4, seed: int = 0, **of: Any
) -> BatchLoader:
    return BatchLoader(tokens, batch_size=batch_size, context_length=context_length, seed=seed, device=CPU, **of)


@given(
    num_tokens=st.integers(9, 200),
    batch_size=st.integers(1, 7),
    context_length=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_every_window_comes_once_an_epoch_before_any_comes_twice(
    num_tokens: int, batch_size: int, context_length: int, seed: int
) -> None:
    batches = loader(np.arange(num_tokens), batch_size=batch_size, context_length=context_length, seed=seed)
    windows = max(1, (num_tokens - 1) // context_length - 1)
    steps = -(-2 * windows // batch_size)
    starts = torch.cat([batches.batch(step)[0][:, 0] for step in range(steps)]).tolist()
    for epoch in (0, 1):
        seen = starts[epoch * windows : (epoch + 1) * windows]
        assert sorted(np.diff(sorted(seen)).tolist()) == [context_length] * (windows - 1)
    assert all(0 <= start < num_tokens - context_length for start in starts)
    assert batches.epoch(steps) == pytest.approx(steps * batch_size / windows)


@given(step=st.integers(0, 10_000), seed=st.integers(0, 100))
def test_a_batch_depends_on_seed_and_step_alone(step: int, seed: int) -> None:
    tokens = np.arange(1000)
    fresh = loader(tokens, seed=seed).batch(step)
    used = loader(tokens, seed=seed)
    for earlier in (step + 1, 0):
        used.batch(earlier)
    assert all(torch.equal(a, b) for a, b in zip(fresh, used.batch(step), strict=True))


@given(
    num_tokens=st.integers(9, 300),
    rows=st.integers(1, 4),
    world_sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    step=st.integers(0, 200),
    seed=st.integers(0, 100),
)
def test_any_number_of_processes_sees_the_same_batch_in_the_same_order(
    num_tokens: int, rows: int, world_sizes: tuple[int, int], step: int, seed: int
) -> None:
    tokens = np.arange(num_tokens)
    batch_size = rows * world_sizes[0] * world_sizes[1]
    single = loader(tokens, batch_size=batch_size, seed=seed).batch(step)
    for world_size in world_sizes:
        shares = [
            loader(tokens, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size).batch(step)
            for rank in range(world_size)
        ]
        assert {len(inputs) for inputs, _ in shares} == {batch_size // world_size}
        for whole, parts in zip(single, zip(*shares, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), whole)


@given(num_tokens=st.integers(40, 200), world_size=st.integers(1, 4), seed=st.integers(0, 1000))
def test_processes_together_see_every_window_once_before_any_twice(num_tokens: int, world_size: int, seed: int) -> None:
    windows = (num_tokens - 1) // 4 - 1
    batch_size = 2 * world_size
    steps = windows // batch_size
    seen = [
        start
        for rank in range(world_size)
        for step in range(steps)
        for start in loader(np.arange(num_tokens), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        .batch(step)[0][:, 0]
        .tolist()
    ]
    assert len(set(seen)) == len(seen) == steps * batch_size


@given(step=st.integers(0, 50), batch_size=st.integers(1, 12), pieces=st.integers(1, 12))
def test_a_slot_of_the_batch_depends_on_nothing_else_in_it(step: int, batch_size: int, pieces: int) -> None:
    """Smaller batches, one after the other, are the large ones: only the global slot counts."""
    tokens = np.arange(500)
    large = loader(tokens, batch_size=batch_size * pieces).batch(step)[0]
    small = [loader(tokens, batch_size=batch_size).batch(step * pieces + piece)[0] for piece in range(pieces)]
    assert torch.equal(torch.cat(small), large)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size must be divisible by the 3 processes \(got 4\)"):
        loader(np.arange(100), batch_size=4, world_size=3)


def test_seeds_and_epochs_differ() -> None:
    tokens = np.arange(10_000)
    assert not torch.equal(loader(tokens, seed=0).batch(0)[0], loader(tokens, seed=1).batch(0)[0])
    windows = (10_000 - 1) // 4 - 1
    batches = loader(tokens, batch_size=windows)
    assert not torch.equal(batches.batch(0)[0], batches.batch(1)[0])
    offsets = {int(batches.batch(epoch)[0].min()) for epoch in range(20)}
    assert len(offsets) > 2


SETS = st.lists(st.integers(9, 80), min_size=2, max_size=4)


def data_sets(sizes: list[int]) -> list[np.ndarray]:
    """Return as many rows of ids, of which each says where it lies, from 1000 on, from 2000 on, ...."""
    return [np.arange(size) + 1000 * number for number, size in enumerate(sizes, start=1)]


@given(
    sizes=SETS,
    batch_size=st.integers(40, 80),
    seed=st.integers(0, 1000),
    weights=st.lists(st.floats(0.5, 5), min_size=4, max_size=4),
)
def test_of_several_data_sets_each_window_comes_once_before_any_twice(
    sizes: list[int], batch_size: int, seed: int, weights: list[float]
) -> None:
    batches = loader(data_sets(sizes), batch_size=batch_size, seed=seed, weights=weights[: len(sizes)])
    starts = torch.cat([batches.batch(step)[0][:, 0] for step in range(4)]).numpy()
    for number, size in enumerate(sizes, start=1):
        mine = starts[starts // 1000 == number] % 1000
        windows = max(1, (size - 1) // 4 - 1)
        assert len(mine) > 0
        for first in range(0, len(mine), windows):
            seen = np.sort(mine[first : first + windows])
            assert len(set(seen.tolist())) == len(seen)
            assert (np.diff(seen) % 4 == 0).all(), "windows of one epoch lie side by side"
        assert ((mine >= 0) & (mine < size - 4)).all()


@given(sizes=SETS, split=st.integers(1, 4), rows=st.integers(1, 3), step=st.integers(0, 3000), seed=st.integers(0, 99))
def test_batches_of_a_mixture_are_the_same_however_a_run_is_split(
    sizes: list[int], split: int, rows: int, step: int, seed: int
) -> None:
    """Over processes, over smaller batches, or begun again in the middle."""
    sets, batch_size = data_sets(sizes), rows * split
    whole = loader(sets, batch_size=batch_size, seed=seed).batch(step)
    shares = [loader(sets, batch_size=batch_size, seed=seed, rank=rank, world_size=split) for rank in range(split)]
    smaller = loader(sets, batch_size=rows, seed=seed)
    for found in (
        [share.batch(step) for share in shares],
        [smaller.batch(step * split + piece) for piece in range(split)],
    ):
        for expected, pieces in zip(whole, zip(*found, strict=True), strict=True):
            assert torch.equal(torch.cat(pieces), expected)


def test_weights_are_kept_exactly_and_by_default_all_data_is_read_equally_often() -> None:
    sets = data_sets([400, 100])
    for weights, expected in (([3, 1], 0.75), (None, 0.8)):
        batches = loader(sets, batch_size=10_000, weights=weights)
        assert (batches.batch(3)[0][:, 0] < 2000).double().mean().item() == expected
    assert batches.epochs(1) == [pytest.approx(8000 / 98), pytest.approx(2000 / 23)]
    assert batches.epoch(1) == pytest.approx(10_000 / 121)


PINNED = [
    (0, 0, [536, 508, 473, 746, 25, 263]),
    (0, 1000, [78, 932, 393, 680, 540, 582]),
    (2**40 + 5, 77, [360, 829, 451, 773, 941, 885]),
    (2**63 - 1, 12_345_678, [106, 393, 57, 295, 505, 127]),
]


def test_the_windows_of_one_data_set_are_those_of_runs_before_there_were_mixtures() -> None:
    """Their checkpoints name the seed, and no order."""
    for seed, step, expected in PINNED:
        starts = loader(np.arange(1000), batch_size=6, context_length=7, seed=seed).batch(step)[0][:, 0]
        assert starts.tolist() == expected


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_targets_are_the_inputs_moved_on_by_one(dtype: str) -> None:
    tokens = np.arange(500).astype(dtype)
    for inputs, targets in (
        loader(tokens).batch(5),
        get_batch(tokens, 3, 4, "cpu"),
        *validation_windows(tokens, windows=3, batch_size=3, context_length=4, device=CPU),
    ):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (3, 4)
        assert inputs.device == targets.device == CPU
        assert torch.equal(targets, inputs + 1)


def test_get_batch_draws_all_windows_alike() -> None:
    np.random.seed(0)
    counts = np.zeros(10)
    for _ in range(200):
        inputs, _ = get_batch(np.arange(16), 50, 6, "cpu")
        counts += np.bincount(inputs[:, 0].numpy(), minlength=10)
    assert counts == pytest.approx(1000, rel=0.15)


def test_get_batch_follows_numpys_seed() -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(3)
        drawn.append(get_batch(np.arange(100), 8, 5, "cpu")[0])
    assert torch.equal(*drawn)


def test_get_batch_needs_a_window_and_a_real_device() -> None:
    inputs, targets = get_batch(np.arange(5), 2, 4, torch.device("cpu"))
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [[1, 2, 3, 4]] * 2
    with pytest.raises(DataError, match=r"4 tokens hold no window of 4 \+ 1; shorten context_length"):
        get_batch(np.arange(4), 2, 4, "cpu")
    with pytest.raises(RuntimeError, match="nowhere"):
        get_batch(np.arange(50), 2, 4, "nowhere")


@given(
    num_tokens=st.integers(5, 300),
    windows=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    context_length=st.integers(1, 4),
)
def test_validation_windows_are_fixed_distinct_and_spread(
    num_tokens: int, windows: int, batch_size: int, context_length: int
) -> None:
    tokens = np.arange(num_tokens)
    batches, again = (
        validation_windows(tokens, windows=windows, batch_size=batch_size, context_length=context_length, device=CPU)
        for _ in range(2)
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    starts = torch.cat([inputs[:, 0] for inputs, _ in batches]).numpy()
    fitting = (num_tokens - 1) // context_length
    assert len(starts) == min(windows, fitting)
    gaps = np.diff(starts)
    assert (gaps >= context_length).all()
    assert gaps.max(initial=0) - gaps.min(initial=num_tokens) <= context_length
    assert all(len(inputs) <= batch_size for inputs, _ in batches)


def test_a_token_file_is_opened_checked_and_mapped(workspace: Path) -> None:
    dataset = TokenDataset.open(workspace / "train.dat", context_length=32)
    assert isinstance(dataset.tokens, TokenStream)
    assert dataset.info == read_info(workspace / "train.dat")
    assert len(dataset.tokens) == dataset.info.num_tokens
    assert dataset.bytes_per_token() == dataset.info.num_text_bytes / dataset.info.num_tokens > 1


def test_shards_are_read_as_the_single_file_is(workspace: Path, sharded: Path) -> None:
    single, several = (TokenDataset.open(path, context_length=32) for path in (workspace / "train.dat", sharded))
    assert len(several.info.shards) == 3
    assert np.array_equal(several.tokens[:], single.tokens[:])
    for step in (0, 9):
        batches = [loader(dataset.tokens, context_length=32).batch(step)[0] for dataset in (single, several)]
        assert torch.equal(*batches)


@pytest.mark.parametrize(("how", "expected"), [("missing", "is missing"), ("damaged", "its content changed")])
def test_a_shard_that_is_not_as_it_was_made_is_named(how: str, expected: str, sharded: Path) -> None:
    shard = sharded.with_name("train.00001.dat")
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    if how == "missing":
        shard.unlink()
    with pytest.raises(DataError, match=rf"train\.00001\.dat: {expected}"):
        TokenDataset.open(sharded, context_length=32)


def test_data_of_less_than_a_window_is_refused(workspace: Path) -> None:
    tokens = read_info(workspace / "valid.dat").num_tokens
    assert len(TokenDataset.open(workspace / "valid.dat", context_length=tokens - 1).tokens) == tokens
    with pytest.raises(DataError, match=rf"valid\.dat: has {tokens} tokens, fewer than one window"):
        TokenDataset.open(workspace / "valid.dat", context_length=tokens)


def test_changed_data_is_refused(workspace: Path, tmp_path: Path) -> None:
    for name in ("valid.dat", "valid.dat.documents", "valid.dat.json"):
        (tmp_path / name).write_bytes((workspace / name).read_bytes())
    path = tmp_path / "valid.dat"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="its content changed since it was made"):
        TokenDataset.open(path, context_length=4)
    assert TokenDataset.open(path, context_length=4, verify=False).path == path
