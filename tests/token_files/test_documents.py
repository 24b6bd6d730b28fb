"""Where documents begin: from the lists and by looking, and which are the longest."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.token_files import documents as token_documents
from transformerlm.token_files.documents import document_begins, longest_documents
from transformerlm.token_files.index import Shard, TokenFileInfo
from transformerlm.token_files.stream import TokenStream
from transformerlm.utils.errors import DataError

END = 0


def write(folder: Path, lengths: list[int], shard_tokens: int | None) -> tuple[Path, TokenFileInfo]:
    """Write documents of `lengths` ids, the last of each the end of text: in shards, or else in format 1."""
    ids = np.concatenate([np.append(np.ones(length - 1, "<u2"), END) for length in lengths]).astype("<u2")
    begins = np.cumsum([0, *lengths])[:-1]
    path, shards = folder / "x.dat", []
    for number, first in enumerate(range(0, len(ids), shard_tokens or len(ids))):
        some = ids[first : first + (shard_tokens or len(ids))]
        here = begins[(begins >= first) & (begins < first + len(some))] - first
        name = path.name if len(some) == len(ids) else f"x.{number:05}.dat"
        (folder / name).write_bytes(some.tobytes())
        (folder / f"{name}.documents").write_bytes(here.astype("<u8").tobytes())
        shards.append(Shard(name=name, num_tokens=len(some), num_documents=len(here), sha256="", documents_sha256=""))
    info = TokenFileInfo(
        format_version=1 if shard_tokens is None else 2, dtype="uint16", num_tokens=len(ids),
        num_documents=len(lengths), num_text_bytes=1, vocab_size=2, max_token_id=1, end_of_text_id=END,
        tokenizer_sha256="", data_sha256="", sources=[], split={}, shards=() if shard_tokens is None else tuple(shards),
    )  # fmt: skip
    return path, info


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that are written again and again."""
    return tmp_path_factory.mktemp("documents")


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    shard_tokens=st.none() | st.integers(1, 200),
    at_a_time=st.integers(1, 50),
    count=st.integers(1, 25),
)
def test_lists_and_looking_find_the_same_and_the_longest_are_the_longest(
    lengths: list[int], shard_tokens: int | None, at_a_time: int, count: int, folder: Path
) -> None:
    for file in folder.iterdir():
        file.unlink()
    path, info = write(folder, lengths, shard_tokens)
    stream = TokenStream.open(path, info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_documents, "_IDS_AT_A_TIME", at_a_time)
        found = list(document_begins(path, info, stream))
    expected = np.cumsum([0, *lengths])[:-1]
    assert all(len(some) <= at_a_time for some in found)
    assert np.concatenate(found).tolist() == expected.tolist()
    by_length = sorted(zip(expected.tolist(), lengths, strict=True), key=lambda document: -document[1])
    assert longest_documents(iter(found), len(stream), count) == by_length[:count]


def test_looking_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_documents, "_IDS_AT_A_TIME", 5)
    path, info = write(tmp_path, [4, 6, 2], None)
    shares: list[float] = []
    assert len(np.concatenate(list(document_begins(path, info, TokenStream.open(path, info), shares.append)))) == 3
    assert shares == [pytest.approx(5 / 12), pytest.approx(10 / 12), 1.0]


def test_a_list_of_another_length_and_documents_without_an_end_are_refused(tmp_path: Path) -> None:
    path, info = write(tmp_path, [4, 6, 2], 5)
    stream = TokenStream.open(path, info)
    file = tmp_path / "x.00001.dat.documents"
    file.write_bytes(file.read_bytes() + bytes(8))
    with pytest.raises(DataError, match=r"x\.00001\.dat\.documents: has 8 bytes where 0 documents need 0"):
        list(document_begins(path, info, stream))
    file = tmp_path / "x.00000.dat.documents"
    file.unlink()
    with pytest.raises(DataError, match=r"x\.00000\.dat\.documents: has 0 bytes where 2 documents need 16"):
        list(document_begins(path, info, stream))
    path, info = write(tmp_path, [4, 6, 2], None)
    with pytest.raises(DataError, match=r"x\.dat: has no end-of-text id"):
        list(document_begins(path, info.model_copy(update={"end_of_text_id": None}), stream))
