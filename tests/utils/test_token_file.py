"""A token file says what it is, and a damaged one is not read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformerlm.utils.errors import DataError
from transformerlm.utils.token_file import (
    TokenFileInfo,
    TokenFileWriter,
    id_dtype,
    open_tokens,
    read_info,
    sidecar_path,
    verify_data,
)


def write(path: Path, ids: list[int], vocab_size: int = 300) -> TokenFileInfo:
    with TokenFileWriter(path, vocab_size=vocab_size, end_of_text_id=0, tokenizer_sha256="abc") as writer:
        for first in range(0, len(ids), 3):
            writer.write(ids[first : first + 3], num_documents=1, num_text_bytes=10)
    return writer.write_sidecar(sources=[{"path": "a.txt", "bytes": 5}], split={"part": "train"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good token file."""
    write(tmp_path / "x.dat", [5, 299, 0, 7, 0])
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


def test_ids_take_two_bytes_while_they_fit(tmp_path: Path) -> None:
    assert [id_dtype(size) for size in (1, 65_535, 65_536, 65_537)] == ["uint16", "uint16", "uint16", "uint32"]
    small, large = tmp_path / "s.dat", tmp_path / "l.dat"
    write(small, [65_535], vocab_size=65_536)
    write(large, [65_536], vocab_size=65_537)
    assert (small.stat().st_size, large.stat().st_size) == (2, 4)
    assert open_tokens(small, read_info(small)).tolist() == [65_535]
    assert open_tokens(large, read_info(large)).tolist() == [65_536]


def test_an_empty_file_has_no_tokens(tmp_path: Path) -> None:
    info = write(tmp_path / "e.dat", [])
    assert open_tokens(tmp_path / "e.dat", info).shape == (0,)


def test_an_exception_leaves_the_old_file_and_its_sidecar(path: Path) -> None:
    before = path.read_bytes(), sidecar_path(path).read_bytes()
    with (
        pytest.raises(RuntimeError),
        TokenFileWriter(path, vocab_size=9, end_of_text_id=None, tokenizer_sha256="") as writer,
    ):
        writer.write([1], num_documents=1, num_text_bytes=1)
        raise RuntimeError
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before


def test_new_data_never_stands_beside_the_old_sidecar(path: Path) -> None:
    with TokenFileWriter(path, vocab_size=9, end_of_text_id=None, tokenizer_sha256="") as writer:
        writer.write([1, 2, 3, 4, 5], num_documents=1, num_text_bytes=1)
    with pytest.raises(DataError, match="the sidecar is missing; make the token file again with"):
        read_info(path)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.dat: there is no such token file; make it with transformerlm-make-data"):
        read_info(tmp_path / "no.dat")


def test_a_file_of_another_size_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"has 9 bytes where its sidecar promises 10; make it again"):
        read_info(path)


def test_a_changed_byte_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="its content changed since it was made; make it again"):
        verify_data(path, read_info(path))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '"text"', "{}", '{"format_version": 2}'],
    ids=["empty", "broken", "list", "null", "string", "no keys", "other version"],
)
def test_a_damaged_sidecar_is_named(content: str, path: Path) -> None:
    sidecar_path(path).write_text(content)
    with pytest.raises(DataError, match=r"x\.dat\.json: is not a sidecar of format 1"):
        read_info(path)


@pytest.mark.parametrize(
    "changes", [{"format_version": 2}, {"dtype": "uint8"}, {"num_tokens": "many"}, {"unknown": 1}, {"sources": None}]
)
def test_a_sidecar_with_other_contents_is_refused(changes: dict[str, Any], path: Path) -> None:
    change_sidecar(path, **changes)
    with pytest.raises(DataError, match=r"x\.dat\.json: is not a sidecar of format 1"):
        read_info(path)


def test_a_sidecar_that_is_not_text_is_refused(path: Path) -> None:
    sidecar_path(path).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a sidecar"):
        read_info(path)


def test_ids_outside_the_vocabulary_are_refused(path: Path) -> None:
    change_sidecar(path, vocab_size=299)
    with pytest.raises(DataError, match="largest id 299 is outside its vocabulary of 299"):
        read_info(path)
