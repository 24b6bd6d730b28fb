"""Every tool does the same work: the ids of the reference, and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarking import tokenizer_cell
from benchmarking.tokenizer_cell import Cell, measure_decoding, measure_encoding, measure_short_calls, measure_training
from benchmarking.tokenizer_rows import CODEC_TOOLS, OURS, TRAINER_TOOLS
from benchmarking.tokenizer_text import build_text
from benchmarking.tokenizer_tools import CODECS, Text, flat_ids, write_tokenizer_json
from benchmarking.tokenizer_trainers import TRAINERS
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

TEXT = (
    "Once upon a time there was a naïve café owner 🙂 who said: 'I'll be back.'\nAnd he was, 人人生而自由, in 2001!\n"
    * 40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text.txt`, its ids in `ids.npy`, and a tokenizer that was trained on it."""
    folder = tmp_path_factory.mktemp("tools")
    path = folder / "text.txt"
    path.write_bytes(TEXT.encode("utf-8"))
    vocab, merges = train_bpe(path, 330, [END_OF_TEXT])
    tokenizer = Tokenizer(vocab, merges, [END_OF_TEXT])
    tokenizer.save(folder)
    write_tokenizer_json(folder, tokenizer.special_tokens)
    np.save(folder / "ids.npy", np.array(tokenizer.encode(TEXT), np.uint16))
    return folder


@pytest.fixture
def little_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_cell, "WARM_UP_BYTES", 7000)
    monkeypatch.setattr(tokenizer_cell, "SHORT_CALLS", 20)


def installed(name: str) -> str:
    if name != OURS:
        pytest.importorskip(name, reason=f"needs {name}: uv sync --extra bench")
    return name


def cell(operation: str, tool: str, folder: Path, threads: int = 1) -> Cell:
    return Cell(operation, tool, threads, f"{folder}/text.txt", f"{folder}/ids.npy", str(folder), vocab_size=330)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_gives_the_reference_ids_and_the_text_back(name: str, folder: Path) -> None:
    codec = CODECS[installed(name)](folder)
    ids = np.load(folder / "ids.npy")
    for threads in (1, 2):
        text = Text.of(TEXT.encode("utf-8"), min(500, codec.piece_chars(threads)))
        assert np.array_equal(flat_ids(codec.encode_array(text, threads)), ids)
        assert np.array_equal(flat_ids(codec.encode_list(text)), ids)
    assert np.array_equal(codec.encode_short(TEXT), ids)
    assert codec.decode_bytes(codec.own_array(ids)) == TEXT.encode("utf-8")
    assert codec.decode_str(ids.tolist()) == TEXT


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_learns_about_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Of the pairs that are equally frequent, as the bytes of one letter are, each takes another one first."""
    path = tmp_path / "text.txt"
    path.write_text(build_text([TEXT.encode("ascii", "ignore").decode()], 200_000, seed=0), encoding="ascii")
    _vocab, merges = train_bpe(path, 300, [END_OF_TEXT])
    tokens = TRAINERS[installed(name)](path, 300, 1)()
    assert len(tokens) == len(merges) == 300 - 257
    assert len({left + right for left, right in merges} & set(tokens)) > 38


@pytest.mark.parametrize("operation", ["encode_array", "encode_list", "decode_bytes", "decode_str"])
@pytest.mark.parametrize("tool", [OURS, "tiktoken"])
@pytest.mark.usefixtures("little_warm_up")
def test_a_measurement_says_how_long_and_whether_it_is_right(
    operation: str, tool: str, folder: Path, tmp_path: Path
) -> None:
    measure = measure_decoding if operation.startswith("decode") else measure_encoding
    result = measure(cell(operation, installed(tool), folder))
    assert result["same"] is True
    assert all(result["seconds"][call] > 0 for call in ("cold", "warm"))
    assert result["peak_memory_bytes"] >= result["memory_before_bytes"] > 10e6
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "text.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    ids = np.load(folder / "ids.npy")
    ids[-1] ^= 1
    np.save(tmp_path / "ids.npy", ids)
    assert measure(cell(operation, tool, tmp_path))["same"] is False


@pytest.mark.usefixtures("little_warm_up")
def test_short_calls_are_timed_by_the_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizer_cell, "measure_calls", lambda call: ({"seconds": {"cold": 20.0, "warm": 40.0}}, call())
    )
    assert measure_short_calls(cell("short_call", OURS, folder))["seconds"] == {"cold": 1, "warm": 2}


@pytest.mark.usefixtures("little_warm_up")
def test_training_tells_the_tokens(folder: Path) -> None:
    result = measure_training(cell("train", OURS, folder))
    assert result["seconds"]["cold"] > 0
    assert len(result["tokens"]) == 330 - 257
    assert "re" in result["tokens"]


def test_the_table_knows_who_can_do_what() -> None:
    assert tuple(CODECS) == CODEC_TOOLS
    assert tuple(TRAINERS) == TRAINER_TOOLS


def test_flat_ids() -> None:
    for result in ([1, 2, 3], np.array([1, 2, 3], np.uint16), [[1], [], [2, 3]], [np.array([1, 2]), np.array([3])]):
        assert flat_ids(result).tolist() == [1, 2, 3]
        assert flat_ids(result).dtype == np.uint32
    assert flat_ids([]).tolist() == []


def test_tokenizer_json_has_all_special_tokens(tmp_path: Path) -> None:
    vocab = {byte: bytes([byte]) for byte in range(256)} | {256: b"<|a|>", 257: b"th", 258: b"<|b|>"}
    tokenizer = Tokenizer(vocab, [(b"t", b"h")], ["<|b|>", "<|a|>"])
    tokenizer.save(tmp_path)
    write_tokenizer_json(tmp_path, tokenizer.special_tokens)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert {token["content"]: token["id"] for token in content["added_tokens"]} == {"<|a|>": 256, "<|b|>": 258}
    assert content["model"]["merges"] == [["t", "h"]]
