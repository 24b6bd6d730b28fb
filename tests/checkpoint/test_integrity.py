"""Damage to a checkpoint folder, of any kind and in any file: it is found and named."""

import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from transformerlm.checkpoint.integrity import DamagedCheckpointError, to_json
from transformerlm.inference.predictor import Predictor
from transformerlm.tokenizer import Tokenizer
from transformerlm.training import Checkpoint, CheckpointStore
from transformerlm.utils.errors import CheckpointError


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A good checkpoint folder, to be damaged."""
    newest = Checkpoint.open(run_folder).path
    return Path(shutil.copytree(newest, tmp_path / newest.name))


FILES = (
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.toml",
    "vocab.json",
    "merges.txt",
    "fingerprint.json",
)


def test_a_folder_holds_what_the_design_says(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(FILES)  # noqa: PTH208 (hidden files too)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.step == 12
    assert checkpoint.model_hparams().vocab_size == 320
    state = checkpoint.run_state()
    assert state["data"] == {"next_sample": 48, "seed": 0}
    assert state.keys() >= {"format_version", "step", "best_step", "progress", "identity", "schedule", "environment"}
    assert checkpoint.model_state().keys() >= {"token_embeddings.weight", "lm_head.weight"}
    assert checkpoint.optimizer_state().keys() == {"optimizer", "random"}
    assert Tokenizer.load(folder).vocab_size == 320


@pytest.mark.parametrize("damage", ["flip", "cut", "zero", "empty", "delete"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_found(name: str, damage: str, folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("step_00000006"))
    path = folder / name
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x80]) + data[len(data) // 2 + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-1], "zero": bytes(len(data)), "empty": b""}[damage])
    with pytest.raises(DamagedCheckpointError, match=name):
        Checkpoint.open(folder, to_resume=True)
    damaged: list[DamagedCheckpointError] = []
    kept = CheckpointStore(folder.parent, keep_last=2, config_toml="", tokenizer=None)
    assert kept.newest(damaged) == Checkpoint(folder.with_name("step_00000006"))
    assert [error.folder for error in damaged] == [folder]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(name: str, folder: Path) -> None:
    path = folder / name
    data = path.read_bytes()
    bits = random.Random(name)
    for position in (0, len(data) - 1, *(bits.randrange(len(data)) for _ in range(40))):
        flipped = data[position] ^ (1 << bits.randrange(8))
        path.write_bytes(data[:position] + bytes([flipped]) + data[position + 1 :])
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json"):
            Checkpoint.open(folder)
    path.write_bytes(data)
    assert Checkpoint.open(folder).step == 12


def test_a_flipped_bit_in_the_manifests_version_is_damage_and_another_version_is_not(folder: Path) -> None:
    for name, error, message in (
        ("manifest.json", DamagedCheckpointError, "is damaged: it says format 3, and state.json 2"),
        ("state.json", CheckpointError, "manifest.json: is of format 3, and this version reads formats up to 2"),
    ):
        file = folder / name
        file.write_text(file.read_text().replace('"format_version": 2', '"format_version": 3'))
        with pytest.raises(error, match=message) as caught:
            Checkpoint.open(folder)
        assert type(caught.value) is error


def test_without_the_optimizers_state_a_checkpoint_serves_but_resumes_no_run(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()
    assert Predictor.from_checkpoint(folder, device="cpu").model.vocab_size == 320
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.safetensors: is missing"):
        Checkpoint.open(folder, to_resume=True)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: is missing; without it the checkpoint serves"):
        Checkpoint.open(folder).optimizer_state()


def test_a_folder_of_format_1_is_read(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    state = to_json(json.loads((folder / "state.json").read_text()) | {"format_version": 1})
    (folder / "state.json").write_bytes(state)
    content["files"]["state.json"] = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (folder / "manifest.json").write_bytes(to_json(content | {"format_version": 1}))
    assert Checkpoint.open(folder, to_resume=True).step == 12


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("transformerlm.checkpoint.integrity.sha256_file", refuse)
    with pytest.raises(PermissionError):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {}}, "does not list state.json"),
        ({"files": {"../x": {"size": 1, "sha256": ""}}}, "does not list state.json"),
        ({"files": None}, "is damaged"),
        ({"files": {"a": 3}}, "is damaged"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    file = folder / "manifest.json"
    file.write_bytes(to_json({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_manifest_names_nothing_outside_its_folder(folder: Path) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["../x"] = {"size": 1, "sha256": ""}
    file.write_bytes(to_json(manifest))
    with pytest.raises(CheckpointError, match=r"names '\.\./x', which is outside the folder"):
        Checkpoint.open(folder)
