"""A token file says what it is, and a damaged one is not read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformerlm.token_files.index import (
    TokenFileInfo,
    documents_path,
    id_dtype,
    joint_sha256,
    open_tokens,
    read_info,
    shard_paths,
    sidecar_path,
    verify_data,
)
from transformerlm.token_files.writer import write_shard_files
from transformerlm.utils.errors import DataError
from transformerlm.utils.files import write_json


def write(path: Path, shards: Sequence[list[int]], vocab_size: int = 300) -> TokenFileInfo:
    """Write documents of three ids each; the last of a shard may have fewer."""
    entries = []
    for number, ids in enumerate(shards):
        name = path.name if len(shards) == 1 else f"{path.stem}.{number}.dat"
        with write_shard_files(path.with_name(name), id_dtype(vocab_size)) as writer:
            for first in range(0, len(ids), 6):
                some = np.array(ids[first : first + 6])
                writer.write(some, np.arange(0, len(some), 3))
        entries.append(writer.describe(name))
    info = TokenFileInfo(
        format_version=2,
        dtype=id_dtype(vocab_size),
        num_tokens=sum(map(len, shards)),
        num_documents=sum(entry.num_documents for entry in entries),
        num_text_bytes=20,
        vocab_size=vocab_size,
        max_token_id=max(max(ids, default=0) for ids in shards),
        end_of_text_id=0,
        tokenizer_sha256="abc",
        data_sha256=joint_sha256(entries),
        sources=[{"path": "a.txt", "bytes": 5}],
        split={"part": "train"},
        shards=tuple(entries),
    )
    write_json(sidecar_path(path), info.model_dump())
    return info


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good token file."""
    write(tmp_path / "x.dat", [[5, 299, 0, 7, 0]])
    return tmp_path / "x.dat"


def change_sidecar(path: Path, **changes: Any) -> None:
    sidecar = sidecar_path(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def test_what_was_written_is_read(path: Path) -> None:
    info = read_info(path)
    assert (info.num_tokens, info.num_documents, info.num_text_bytes, info.max_token_id) == (5, 2, 20, 299)
    tokens = open_tokens(path, info)
    assert tokens.tolist() == [5, 299, 0, 7, 0]
    assert not tokens.flags.writeable
    verify_data(path, info)
    assert path.read_bytes() == np.array([5, 299, 0, 7, 0], dtype="<u2").tobytes()
    assert documents_path(path).read_bytes() == np.array([0, 3], dtype="<u8").tobytes()


def test_shards_are_described_each_and_together(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    info = write(path, [[1, 2, 0, 3, 4, 0, 5, 6, 0], [7, 8]])
    assert read_info(path) == info
    assert shard_paths(path, info) == [tmp_path / "x.0.dat", tmp_path / "x.1.dat"]
    assert [(shard.num_tokens, shard.num_documents) for shard in info.shards] == [(9, 3), (2, 1)]
    digests = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in shard_paths(path, info))
    assert info.data_sha256 == hashlib.sha256(digests.encode()).hexdigest()
    verify_data(path, info)
    assert np.fromfile(tmp_path / "x.0.dat.documents", "<u8").tolist() == [0, 3, 6]


def test_a_single_file_may_be_renamed_with_its_companions(path: Path) -> None:
    for file in (path, documents_path(path), sidecar_path(path)):
        file.rename(file.with_name(file.name.replace("x.dat", "y.dat")))
    renamed = path.with_name("y.dat")
    verify_data(renamed, read_info(renamed))


def test_a_file_of_format_1_is_still_read(path: Path) -> None:
    documents_path(path).unlink()
    old = json.loads(sidecar_path(path).read_text()) | {"format_version": 1}
    del old["shards"], old["text"]
    sidecar_path(path).write_text(json.dumps(old))
    info = read_info(path)
    assert shard_paths(path, info) == [path]
    assert open_tokens(path, info).tolist() == [5, 299, 0, 7, 0]
    verify_data(path, info)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match="its content changed since it was made"):
        verify_data(path, info)


def test_ids_take_two_bytes_while_they_fit(tmp_path: Path) -> None:
    assert [id_dtype(size) for size in (1, 65_535, 65_536, 65_537)] == ["uint16", "uint16", "uint16", "uint32"]
    small, large = tmp_path / "s.dat", tmp_path / "l.dat"
    write(small, [[65_535]], vocab_size=65_536)
    write(large, [[65_536]], vocab_size=65_537)
    assert (small.stat().st_size, large.stat().st_size) == (2, 4)
    assert open_tokens(small, read_info(small)).tolist() == [65_535]
    assert open_tokens(large, read_info(large)).tolist() == [65_536]


def test_an_exception_leaves_the_old_files(path: Path) -> None:
    before = path.read_bytes(), documents_path(path).read_bytes()
    with pytest.raises(RuntimeError), write_shard_files(path, "uint16") as writer:
        writer.write(np.array([1]), np.array([0]))
        raise RuntimeError
    assert (path.read_bytes(), documents_path(path).read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 3


def test_a_missing_file_names_the_command(path: Path) -> None:
    nowhere = path.with_name("no.dat")
    with pytest.raises(DataError, match=r"no\.dat: there is no such token file; make it with transformerlm-make-data"):
        read_info(nowhere)
    sidecar_path(path).unlink()
    with pytest.raises(DataError, match=r"or its sidecar .*\.json is missing; make it again with"):
        read_info(path)


@pytest.mark.parametrize("name", ["x.0.dat", "x.1.dat", "x.0.dat.documents"])
def test_a_missing_a_short_and_a_changed_shard_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    info = write(path, [[1, 2, 0, 3, 4, 0], [7, 8]])
    file = tmp_path / name
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DataError, match=f"{name}: its content changed since it was made; make it again"):
        verify_data(path, info)
    file.write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"{name}: has {len(data) - 1} bytes where its sidecar promises {len(data)}"):
        read_info(path)
    file.unlink()
    with pytest.raises(DataError, match=f"{name}: is missing; make the token file again"):
        read_info(path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '"text"', "{}", '{"format_version": 3}'],
    ids=["empty", "broken", "list", "null", "string", "no keys", "other version"],
)
def test_a_damaged_sidecar_is_named(content: str, path: Path) -> None:
    sidecar_path(path).write_text(content)
    with pytest.raises(DataError, match=r"x\.dat\.json: is not a sidecar of format 2 or older"):
        read_info(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 1},
        {"dtype": "uint8"},
        {"num_tokens": "many"},
        {"num_tokens": 6},
        {"unknown": 1},
        {"sources": None},
        {"shards": []},
        {"shards": [dict.fromkeys(("sha256", "documents_sha256"), "") | {"name": "../x", "num_tokens": 5}]},
    ],
)
def test_a_sidecar_with_other_contents_is_refused(changes: dict[str, Any], path: Path) -> None:
    change_sidecar(path, **changes)
    with pytest.raises(DataError, match=r"x\.dat\.json: is not a sidecar of format 2 or older"):
        read_info(path)


def test_a_shard_outside_the_folder_is_refused(path: Path) -> None:
    [shard] = json.loads(sidecar_path(path).read_text())["shards"]
    for name in ("../x.dat", "/x.dat", "a\\x.dat", ""):
        change_sidecar(path, shards=[shard | {"name": name}])
        with pytest.raises(DataError, match="is not a sidecar of format 2 or older"):
            read_info(path)


def test_a_sidecar_that_is_not_text_is_refused(path: Path) -> None:
    sidecar_path(path).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a sidecar"):
        read_info(path)


def test_ids_outside_the_vocabulary_are_refused(path: Path) -> None:
    change_sidecar(path, vocab_size=299)
    with pytest.raises(DataError, match="largest id 299 is outside its vocabulary of 299"):
        read_info(path)
