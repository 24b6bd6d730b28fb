"""The tokenizers that are compared, each by the fastest of its own calls that gives the result.

    operation       ours                      gigatoken            tiktoken                tokenizers
    encode_array    encode_to_array(bytes)    encode(bytes)        encode_to_numpy(str)    encode_batch_fast
    … 2 threads     … num_threads=2           encode_batch         encode_ordinary_batch   encode_batch_fast
    encode_list     encode(str)               encode(str)          encode_ordinary(str)    encode_batch_fast
                                              .tolist()
    short_call      encode(str)               encode(str): array   encode_ordinary(str)    encode(str)
    decode_bytes    decode_bytes(array)       decode(array)        decode_bytes(list)      decode(list)
    decode_str      decode(list)              decode(list)         decode(list)            decode(list)

A call in the table that takes or gives another type than the row's has the conversion in its time, except that the
batch calls give lists or ragged arrays, which are left as they are. A tool that distributes only whole documents over
threads gets the text cut into pieces beforehand, where that changes no id. tokenizers always gets pieces: it takes
twice as long on a long text.

A peer is imported when it is asked for, so that each runs where the others are not installed.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from benchmarking.tokenizer_rows import OURS
from benchmarking.tokenizer_text import cut_text

TOKENIZER_JSON = "tokenizer.json"
PIECE_CHARS = 1 << 16  # long enough to hide the cost of a call, short enough for threads to finish together
SMALL_PIECE_CHARS = 1 << 12  # for tokenizers, which is slower the longer a text is

IdArray = npt.NDArray[np.unsignedinteger]


def module_of(name: str) -> Any:
    """Import a module of a peer by its name, so that the type checker does not look for what is not installed."""
    return importlib.import_module(name)


@dataclass(frozen=True)
class Text:
    """A text in the forms that tokenizers take, so that making them is not timed; `pieces` joined are the text."""

    data: bytes
    string: str
    pieces: Sequence[str]
    data_pieces: Sequence[bytes]

    @classmethod
    def of(cls, data: bytes, piece_chars: int) -> "Text":
        """Return the text that `data` holds in UTF-8, with pieces of about `piece_chars` (0: one piece)."""
        string = data.decode("utf-8")
        pieces = cut_text(string, piece_chars) if piece_chars else [string]
        return cls(data, string, pieces, [piece.encode("utf-8") for piece in pieces] if piece_chars else [data])


class Codec(Protocol):
    """A tokenizer, read from a folder with `vocab.json`, `merges.txt` and `tokenizer.json`."""

    def __init__(self, folder: Path) -> None: ...

    @staticmethod
    def piece_chars(threads: int) -> int:
        """Return the length of the pieces of a text for this number of threads (0: the whole text)."""
        ...

    def encode_array(self, text: Text, threads: int) -> Any:
        """Return the ids, in a form that `flat_ids` understands."""
        ...

    def encode_list(self, text: Text) -> Any: ...

    def encode_short(self, text: str, /) -> Any: ...

    def decode_bytes(self, ids: IdArray, /) -> bytes: ...

    def decode_str(self, ids: list[int], /) -> str: ...

    def own_array(self, ids: IdArray) -> IdArray:
        """Return the ids in the type of array that it encodes to itself."""
        ...


@final
class Ours:
    """This project's tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformerlm.tokenizer import Tokenizer

        self._tokenizer = Tokenizer.load(folder)
        self.encode_short = self._tokenizer.encode
        self.decode_bytes = self._tokenizer.decode_bytes
        self.decode_str = self._tokenizer.decode

    @staticmethod
    def piece_chars(threads: int) -> int:
        del threads
        return 0

    def encode_array(self, text: Text, threads: int) -> IdArray:
        return self._tokenizer.encode_to_array(text.data, num_threads=threads)

    def encode_list(self, text: Text) -> list[int]:
        return self._tokenizer.encode(text.string)

    def own_array(self, ids: IdArray) -> IdArray:
        return ids


@final
class Gigatoken:
    """The package of that name: an encoder and trainer in Rust."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = module_of("gigatoken").Tokenizer(folder / TOKENIZER_JSON)
        self.encode_short = self._tokenizer.backend.encode  # what its own `encode` calls
        self.decode_bytes = self._tokenizer.decode

    @staticmethod
    def piece_chars(threads: int) -> int:
        return PIECE_CHARS if threads > 1 else 0

    def encode_array(self, text: Text, threads: int) -> Any:
        if threads == 1:
            return self._tokenizer.encode(text.data)
        return self._tokenizer.encode_batch(list(text.data_pieces), parallel=True)

    def encode_list(self, text: Text) -> list[int]:
        return self._tokenizer.encode(text.string).tolist()

    def decode_str(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids).decode("utf-8", errors="replace")

    def own_array(self, ids: IdArray) -> IdArray:
        return ids.astype(np.uint32)


@final
class Tiktoken:
    """https://github.com/openai/tiktoken"""

    def __init__(self, folder: Path) -> None:
        from transformerlm.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(folder)
        special = set(tokenizer.special_tokens.values())
        self._encoding = module_of("tiktoken").Encoding(
            name="benchmark",
            pat_str=module_of("tiktoken_ext.openai_public").r50k_pat_str,  # in the spelling that is fast for its engine
            mergeable_ranks={token: number for number, token in tokenizer.vocab.items() if number not in special},
            special_tokens=dict(tokenizer.special_tokens),
        )
        self.encode_short = self._encoding.encode_ordinary
        self.decode_str = self._encoding.decode

    @staticmethod
    def piece_chars(threads: int) -> int:
        return PIECE_CHARS if threads > 1 else 0

    def encode_array(self, text: Text, threads: int) -> Any:
        if threads == 1:
            return self._encoding.encode_to_numpy(text.string, disallowed_special=())
        return self._encoding.encode_ordinary_batch(list(text.pieces), num_threads=threads)

    def encode_documents(self, documents: Sequence[str], threads: int) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(documents), num_threads=threads)

    def encode_list(self, text: Text) -> list[int]:
        return self._encoding.encode_ordinary(text.string)

    def decode_bytes(self, ids: IdArray) -> bytes:
        return self._encoding.decode_bytes(ids.tolist())

    def own_array(self, ids: IdArray) -> IdArray:
        return ids.astype(np.uint32)


@final
class Tokenizers:
    """https://github.com/huggingface/tokenizers"""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = module_of("tokenizers").Tokenizer.from_file(str(folder / TOKENIZER_JSON))

    @staticmethod
    def piece_chars(threads: int) -> int:
        del threads
        return SMALL_PIECE_CHARS

    def encode_array(self, text: Text, threads: int) -> list[list[int]]:
        del threads  # set by RAYON_NUM_THREADS
        encodings = self._tokenizer.encode_batch_fast(list(text.pieces), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_documents(self, documents: Sequence[str], threads: int) -> list[list[int]]:
        del threads  # as above
        encodings = self._tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_list(self, text: Text) -> list[list[int]]:
        return self.encode_array(text, threads=1)

    def encode_short(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: IdArray) -> bytes:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode("utf-8")

    def decode_str(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def own_array(self, ids: IdArray) -> IdArray:
        return ids


CODECS: Mapping[str, type[Codec]] = {
    OURS: Ours,
    "gigatoken": Gigatoken,
    "tiktoken": Tiktoken,
    "tokenizers": Tokenizers,
}


def flat_ids(result: Any) -> npt.NDArray[np.uint32]:
    """Return the ids that an `encode_array` or `encode_list` gave as one array."""
    parts = [result] if isinstance(result, np.ndarray) or not len(result) or np.isscalar(result[0]) else result
    return np.concatenate([np.asarray(part, np.uint32) for part in parts])


def write_tokenizer_json(folder: Path, special_tokens: Mapping[str, int]) -> None:
    """Write the `tokenizer.json` that says the same as `vocab.json` and `merges.txt` in `folder`."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    _version, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": token_id, "content": token, **flags} for token, token_id in special_tokens.items()]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": [merge.split(" ") for merge in merges],
        },
    }  # fmt: skip
    (folder / TOKENIZER_JSON).write_text(json.dumps(content), encoding="utf-8")
