"""Two processes are as good as one: the same gradients, steps and checkpoints, for DDP and FSDP2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from transformerlm.training import Checkpoint
from transformerlm.utils.errors import CheckpointError

TIMEOUT = 100  # seconds: the two take 10 where nobody else is at work

WAYS = ("whole-adamw", "1-adamw", "whole-muon", "1-adamw_masked")
CASES = [f"{strategy}-{way}" for strategy in ("ddp", "fsdp") for way in WAYS]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT + 20)]

Results = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(start: Callable[..., Any], free_port: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two workers that are done."""
    folder = tmp_path_factory.mktemp("workers")
    worker = Path(__file__).with_name("worker.py")
    where = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port}
    workers = [start(worker, folder, RANK=rank, LOCAL_RANK=rank, **where) for rank in range(2)]
    for process in workers:
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Results]:
    """What each of the two found."""
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def part(results: Results, prefix: str) -> Results:
    found = {name.removeprefix(f"{prefix}."): value for name, value in results.items() if name.startswith(f"{prefix}.")}
    assert found, prefix
    return found


def alone(case: str) -> str:
    return f"single-whole-{case.rpartition('-')[2]}"


def assert_close(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_equal(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_processes_agree(results: list[Results]) -> None:
    for rank, found in enumerate(results):
        assert found["agreed.largest"] == 11
        assert found["agreed.sum"] == 2
        assert found["agreed.mean"] == 0.5
        assert found["agreed.from_first"] == 7
        first = "DataError: 0 has no data" if rank == 0 else "PeerError: process 0 failed: 0 has no data"
        second = "DataError: 1 has no data" if rank == 1 else "PeerError: process 1 failed: 1 has no data"
        assert bytes(found["agreed.errors"].tolist()).decode() == f"{first} | {second}"


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_whole_batch(case: str, results: list[Results]) -> None:
    expected = part(results[0], f"{alone(case)}.gradient")
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for found in results:
        assert_close(part(found, f"{case}.gradient"), expected)


def test_a_mask_makes_another_gradient(results: list[Results]) -> None:
    plain, masked = (part(results[0], f"single-whole-{way}.gradient") for way in ("adamw", "adamw_masked"))
    assert not any(torch.equal(masked[name], gradient) for name, gradient in plain.items() if "attn" in name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_are_sent_once_a_step_however_many_pieces_it_has(strategy: str, results: list[Results]) -> None:
    for found in results:
        once = found[f"{strategy}-whole-adamw.sendings"]
        assert once > 0
        assert found[f"{strategy}-1-adamw.sendings"] == once


def test_fsdp_sends_the_gradients_of_each_block_apart(results: list[Results]) -> None:
    for found in results:
        assert found["fsdp-whole-adamw.scatterings"] == 3  # two blocks, and what is outside them
        assert found["ddp-whole-adamw.scatterings"] == 0


@pytest.mark.parametrize("case", CASES)
def test_six_steps_are_those_of_one_process(case: str, results: list[Results]) -> None:
    for found in results:
        assert_close(part(found, f"{case}.number"), part(results[0], f"{alone(case)}.number"))
        assert_close(part(found, f"{case}.weight"), part(results[0], f"{alone(case)}.weight"))


@pytest.mark.parametrize("case", CASES)
def test_fsdp_keeps_half_of_every_weight_and_ddp_all(case: str, results: list[Results]) -> None:
    whole = results[0][f"{alone(case)}.pieces"]
    pieces = [found[f"{case}.pieces"] for found in results]
    if case.startswith("ddp"):
        assert pieces == [whole, whole]
    else:
        assert sum(pieces) == whole
        assert all(abs(piece / whole - 0.5) < 0.05 for piece in pieces)


@pytest.mark.parametrize("case", CASES)
def test_resuming_in_two_is_not_stopping(case: str, results: list[Results]) -> None:
    for found in results:
        assert_equal(part(found, f"{case}.resumed"), part(results[0], f"{case}.weight"))


@pytest.mark.parametrize("case", CASES)
def test_two_begin_with_the_weights_of_a_checkpoint(case: str, folder: Path, results: list[Results]) -> None:
    expected = Checkpoint.open(folder / "single-whole-adamw").model_state()
    for found in results:
        assert_equal(part(found, f"{case}.begun"), expected)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_two_continues_in_one(case: str, results: list[Results]) -> None:
    assert_close(part(results[0], f"{case}.to_one"), part(results[0], f"{case}.weight"))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_one_continues_in_two(case: str, results: list[Results]) -> None:
    for found in results:
        assert_close(part(found, f"{case}.from_one"), part(results[0], f"{alone(case)}.weight"))


@pytest.mark.parametrize("case", CASES)
def test_what_is_sharded_is_saved_in_pieces_and_nothing_is_pickled(case: str, folder: Path) -> None:
    checkpoint = folder / case / "step_00000003"
    names = {path.name for path in checkpoint.iterdir()}
    common = {"state.json", "config.toml", "fingerprint.json", "manifest.json"}
    if case.startswith("ddp"):
        assert names == common | {"model.safetensors", "optimizer.safetensors"}
    else:
        shards = {f"shard-0000{rank}-model-0000{part}-of-00002.safetensors" for rank in (1, 2) for part in (1, 2)}
        assert names == common | shards | {"structure.json"}


def test_a_damaged_piece_is_named(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_00000003"
    shutil.copytree(folder / "fsdp-whole-adamw" / checkpoint.name, checkpoint)
    Checkpoint.open(checkpoint)
    piece = checkpoint / "shard-00002-model-00001-of-00002.safetensors"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    with pytest.raises(CheckpointError, match=piece.name):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("case", CASES)
def test_the_fingerprint_is_that_of_the_whole_model(case: str, folder: Path) -> None:
    checkpoint = Checkpoint.open(folder / case)
    saved = json.loads((checkpoint.path / "fingerprint.json").read_text(encoding="utf-8"))
    assert torch.tensor(saved["logits"]).isfinite().all()
    checkpoint.require_same_code()
