"""What a token file must hold, worked out in the plainest way; and what it does hold."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from transformerlm.token_files.index import documents_path, read_info, shard_paths, verify_data
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

WORD = 2**64


class Oracle:
    """Functions that tests of several modules need."""

    def text_hash(self, document: str) -> int:
        """Return the hash of a text."""
        return _hash(document)

    def is_validation(self, document: str, fraction: float) -> bool:
        """Return whether a document goes to validation."""
        return _hash(document) < fraction * WORD

    def shuffled(self, documents: Sequence[str], seed: int = 0) -> list[str]:
        """Return documents in the order in which a shuffling build writes them."""
        return sorted(documents, key=lambda document: _mixed(_hash(document) ^ _mixed(seed)))

    def ids_of(self, documents: Sequence[str], tokenizer: Tokenizer) -> list[int]:
        """Return the ids of documents, each with its end-of-text id."""
        ids: list[int] = []
        for document in documents:
            ids += [*tokenizer.encode(document, allowed_special=set()), tokenizer.special_tokens[END_OF_TEXT]]
        return ids

    def read_ids(self, path: Path) -> list[int]:
        """Return all ids of a token file, after checking everything that its sidecar says of them."""
        info = read_info(path)
        verify_data(path, info)
        dtype = "<u2" if info.dtype == "uint16" else "<u4"
        arrays = [np.fromfile(file, dtype=dtype) for file in shard_paths(path, info)]
        assert [len(array) for array in arrays] == [shard.num_tokens for shard in info.shards]
        ids = np.concatenate(arrays)
        begins, first = [], 0
        for file, array in zip(shard_paths(path, info), arrays, strict=True):
            begins += (np.fromfile(documents_path(file), dtype="<u8").astype(int) + first).tolist()
            first += len(array)
        ends = np.flatnonzero(ids == info.end_of_text_id)
        assert ends[-1] == len(ids) - 1, "the last document has no end"
        assert begins == [0, *(ends[:-1] + 1).tolist()]
        assert (len(ids), len(ends), int(ids.max())) == (info.num_tokens, info.num_documents, info.max_token_id)
        return ids.tolist()

    def documents_of(self, path: Path, tokenizer: Tokenizer) -> list[str]:
        """Return the documents of a token file, in its order."""
        texts: list[str] = []
        ids: list[int] = []
        for token_id in self.read_ids(path):
            if token_id == tokenizer.eos_token_id:
                texts.append(tokenizer.decode(ids))
                ids = []
            else:
                ids.append(token_id)
        return texts

    def files_in(self, folder: Path) -> dict[str, bytes]:
        """Return every file of a folder by its path there."""
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def _hash(document: str) -> int:
    """The hash of a text, in whole numbers of any size."""
    data = document.encode("utf-8")
    total = 0
    for place, first in enumerate(range(0, len(data), 8)):
        word = int.from_bytes(data[first : first + 8], "little")
        total += (word ^ (word >> 32)) * 0xD6E8FEB86659FD93 * pow(0x9FB21C651E98DF25, place, WORD)
    return _mixed((total + len(data)) % WORD)


def _mixed(number: int) -> int:
    """SplitMix64, likewise."""
    number = (number + 0x9E3779B97F4A7C15) % WORD
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % WORD
    return number ^ (number >> 31)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """What tests compare with."""
    return Oracle()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a text file and returns its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8"))
        return path

    return write
