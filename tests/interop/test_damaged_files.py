"""Whatever stands in a file that is read, only this project's error comes out of it.

Files are damaged byte by byte, and value by value, which leaves what is around the damage to be believed. A few
examples are tried; for more: `FUZZ_EXAMPLES=2000 pytest tests/interop/test_damaged_files.py`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformerlm.checkpoint.folder import load_model_state
from transformerlm.checkpoint.integrity import to_json
from transformerlm.inference.predictor import Predictor
from transformerlm.interop.huggingface_import import read_huggingface, write_checkpoint
from transformerlm.models.build import build_model
from transformerlm.token_files.dataset import TokenDataset
from transformerlm.training import Checkpoint
from transformerlm.utils.errors import CheckpointError, DataError, InteropError, TransformerLMError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
fuzz = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**300, 10**4000]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", "..", "../x", "/", "\x00", "\udc80", "a" * 5000, "🙂" * 100, "LlamaForCausalLM", "F32", "I8", "linear"]
    ),
)
VALUES = st.recursive(
    LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)
)
NESTED = b"[" * 100_000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def damaged_values(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which one is another or is gone, or stands under another name."""
    value = json.loads(json.dumps(value))
    *parents, last = draw(st.sampled_from(list(places(value))[1:]))
    holder = value
    for key in parents:
        holder = holder[key]
    how = draw(st.sampled_from(["another", "gone", "renamed", "swapped"]))
    if how == "another":
        holder[last] = draw(VALUES)
    elif how == "swapped":  # with one of another place, which is right in its own
        *others, other = draw(st.sampled_from(list(places(value))[1:]))
        source = value
        for key in others:
            source = source[key]
        holder[last] = json.loads(json.dumps(source[other]))
    else:
        item = holder.pop(last)
        if how == "renamed" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = item
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which some are others, are gone, or are too many."""
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + draw(st.sampled_from([0, 1, 8, len(data)])))))
    return data[:begin] + draw(st.one_of(st.binary(max_size=9), st.just(NESTED), st.just(data[:50]))) + data[end:]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")


def damaged_json(data: bytes) -> st.SearchStrategy[bytes]:
    return damaged_bytes(data) | damaged_values(json.loads(data)).map(as_json)


def damaged_safetensors(data: bytes) -> st.SearchStrategy[bytes]:
    """Damage in the length of the header, in the header, or anywhere."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    lengths = st.sampled_from([0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1])
    return st.one_of(
        lengths.map(lambda length: length.to_bytes(8, "little") + header + body),
        damaged_json(header).map(lambda text: len(text).to_bytes(8, "little") + text + body),
        damaged_bytes(data),
    )


def only(error: type[TransformerLMError], read: Callable[[], object]) -> bool:
    """Whether it could be read; anything but `error`, said in one line that can be printed, fails the test."""
    try:
        read()
    except error as problem:
        assert "\n" not in str(problem)
        str(problem).encode("utf-8")
        return False
    return True


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as transformers saves it, in two files and an index."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign")
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) == 2
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
@fuzz
@given(data=st.data())
def test_damaged_files_of_others(name: str, foreign: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = (foreign / name).read_bytes()
    damage = damaged_safetensors if name.endswith(".safetensors") else damaged_json
    folder, out = tmp_path / "damaged", tmp_path / "out"
    for path in (folder, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(foreign, folder)
    (folder / name).write_bytes(data.draw(damage(original)))

    def read() -> None:
        write_checkpoint(read_huggingface(folder, tokenizer="none"), out, "float32")

    assert only(InteropError, read) == out.exists()
    if out.exists():  # the damage did not matter, or made another model: it must be a whole one
        checkpoint = Checkpoint.open(out)
        model = build_model(checkpoint.model_hparams().model_copy(update={"context_length": 16}))
        load_model_state(model, checkpoint.model_state())
        assert model(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 20)


@fuzz
@given(data=st.data())
def test_damaged_sidecars_of_token_files(data: st.DataObject, sharded_small: Path) -> None:
    sidecar = sharded_small.with_name("train.dat.json")
    original = sidecar.with_name("original.json").read_bytes()
    sidecar.write_bytes(data.draw(damaged_json(original)))

    def read() -> None:
        dataset = TokenDataset.open(sharded_small, context_length=8)
        assert len(dataset.tokens[0:9]) == 9

    only(DataError, read)


@pytest.fixture
def sharded_small(sharded: Path) -> Path:
    """The token file of three shards, with a copy of its sidecar."""
    shutil.copy(sharded.with_name("train.dat.json"), sharded.with_name("original.json"))
    return sharded


@pytest.fixture
def checkpoint(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint without the optimizer's state, which inference does not read."""
    folder = Path(shutil.copytree(Checkpoint.open(run_folder).path, tmp_path / "step_00000012"))
    (folder / "optimizer.safetensors").unlink()
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write a manifest that fits the files, as one would who means harm."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_bytes(to_json({"format_version": 1, "files": files}))


@fuzz
@given(data=st.data())
def test_damaged_manifests(data: st.DataObject, checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    original = manifest.read_bytes()
    indented = damaged_values(json.loads(original)).map(lambda value: json.dumps(value, indent=2).encode() + b"\n")
    manifest.write_bytes(data.draw(damaged_json(original) | indented))
    try:
        only(CheckpointError, lambda: Checkpoint.open(checkpoint))
    finally:
        manifest.write_bytes(original)


@pytest.mark.parametrize("name", ["state.json", "config.toml", "model.safetensors"])
@fuzz
@given(data=st.data())
def test_damaged_files_that_the_manifest_believes(name: str, data: st.DataObject, checkpoint: Path) -> None:
    path = checkpoint / name
    original = path.read_bytes()
    damages = {"state.json": damaged_json, "config.toml": damaged_toml, "model.safetensors": damaged_safetensors}
    path.write_bytes(data.draw(damages[name](original)))
    seal(checkpoint)

    def read() -> None:
        Checkpoint.open(checkpoint).run_state()
        Predictor.from_checkpoint(checkpoint, device="cpu")

    try:
        only(TransformerLMError, read)
    finally:
        path.write_bytes(original)


def damaged_toml(data: bytes) -> st.SearchStrategy[bytes]:
    """Damage in the bytes, or in a value of the table that describes the model."""
    import tomllib

    model = tomllib.loads(data.decode("utf-8"))["model"]
    leaves = st.one_of(st.booleans(), st.integers(-2, 2**20), st.just(2**62), st.floats(), st.text("ab", max_size=3))
    values = st.tuples(st.sampled_from(sorted(model)), leaves)
    tables = values.map(lambda change: tomli_w.dumps({"model": model | {change[0]: change[1]}}).encode("utf-8"))
    return damaged_bytes(data) | tables
