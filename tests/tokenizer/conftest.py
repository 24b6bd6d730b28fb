"""GPT-2's tokenizer, ours and tiktoken's, from the files in `tests/data`, and a small one."""

import json
import lzma
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken

from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, gpt2_bytes_to_unicode

SAMPLES = Path(__file__).parents[1] / "data"
CORPORA = Path(__file__).parents[2] / "../shared/data"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""  # tiktoken's


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the samples of `tests/data`, GPT-2's files uncompressed."""
    return unpack_samples(tmp_path_factory.mktemp("data"))


def unpack_samples(folder: Path) -> Path:
    for path in SAMPLES.glob("*.txt"):
        shutil.copy(path, folder)
    for path in SAMPLES.glob("gpt2/*.xz"):
        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folder


@pytest.fixture(params=["tinyshakespeare.txt", "udhr_multilingual.txt", "wikitext2_valid.txt"])
def whole_corpus(request: pytest.FixtureRequest) -> bytes:
    """A whole corpus of the shared data folder."""
    path = CORPORA / request.param
    if not path.is_file():
        pytest.skip(f"needs the whole corpus {path.name} in ../shared/data")
    return path.read_bytes()


@pytest.fixture(scope="session")
def gpt2(data: Path) -> Tokenizer:
    return Tokenizer.from_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt", [END_OF_TEXT])


@pytest.fixture(scope="session")
def oracle(data: Path) -> tiktoken.Encoding:
    return tiktoken_from(data)


def tiktoken_from(folder: Path, pattern: str = GPT2_PATTERN) -> tiktoken.Encoding:
    """tiktoken's GPT-2, or with another pattern, read from the files without our code."""
    byte_of = {character: byte for byte, character in gpt2_bytes_to_unicode().items()}
    entries = json.loads((folder / "gpt2_vocab.json").read_bytes())
    special = {END_OF_TEXT: entries.pop(END_OF_TEXT)}
    ranks = {bytes(byte_of[character] for character in text): rank for text, rank in entries.items()}
    return tiktoken.Encoding(name="gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def toy() -> Tokenizer:
    """A tokenizer small enough to check by hand: a few merges, special tokens that begin one another."""
    merges = [
        (b"t", b"h"),
        (b"th", b"e"),
        (b" ", b"the"),
        (b"l", b"l"),
        (b"'", b"ll"),
        (b"a", b"a"),
        (b"aa", b"aa"),
    ]
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    return Tokenizer(dict(enumerate(tokens)), merges, ["<|eot|>", "<|eot|><|eot|>", "a b"])


@pytest.fixture(scope="session")
def divide() -> Callable[[str, Sequence[int]], list[str]]:
    """Cuts a text at places, taken modulo its length; several at one place give empty parts."""

    def cut(text: str, places: Sequence[int]) -> list[str]:
        cuts = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    return cut
