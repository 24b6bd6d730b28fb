"""The tokenizer: text to ids and back, the same ids that GPT-2 (and tiktoken) gives for the same files.

Text is cut at special tokens, the rest into pre-tokens, and each pre-token is merged by itself; since most of
them come again and again, their ids are remembered.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from pathlib import Path
from typing import Literal, Self, final

from transformerlm.hparams import END_OF_TEXT
from transformerlm.tokenizer import io
from transformerlm.tokenizer.checks import check_merges, check_vocab, ordinary_tokens
from transformerlm.tokenizer.merge import MergeTable, merge_bytes, merge_table
from transformerlm.tokenizer.pretokenize import (
    check_special_tokens,
    pretokenize,
    special_pattern,
    split_special,
)
from transformerlm.tokenizer.streaming import repair_surrogates, safe_blocks
from transformerlm.utils.errors import TokenizerError

MAX_CACHED_PIECES = 1 << 18  # about 60 MB
MAX_CACHED_CHARS = 64


@final
class Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenization. It can be pickled."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | None = None,
    ) -> None:
        """Build a tokenizer from a vocabulary (id to bytes) and merges (the earliest first).

        Special tokens that `vocab` lacks are appended with the next free ids. An entry of `vocab` that is not
        a single byte, that no merge makes and that `special_tokens` does not name is decoded but never
        encoded to.

        Raises `TokenizerError` for a vocabulary that is not as `transformerlm.tokenizer.checks` says, and for
        special tokens that are also ordinary tokens.
        """
        special_tokens = special_tokens or ()
        check_special_tokens(special_tokens)
        check_vocab(vocab, source="vocab")
        check_merges(merges, vocab, where=lambda index: f"merges[{index}]")
        self._vocab = dict(sorted(vocab.items()))
        self._merges = list(merges)
        self._special_tokens = self._number_specials(special_tokens)
        self._pattern = special_pattern(self._special_tokens)
        self._piece_ids = _PieceIds(self._vocab, self._merges)

    def _number_specials(self, special_tokens: Sequence[str]) -> dict[str, int]:
        ordinary = ordinary_tokens(self._merges)
        others = {token: token_id for token_id, token in self._vocab.items() if token not in ordinary}
        for token, token_id in others.items():
            if not _is_utf8(token):
                raise TokenizerError(
                    f"vocab: no merge makes {token!r} (id {token_id}), and it is no special token, for it is "
                    "not UTF-8; give the merges that belong to the vocabulary"
                )
        for special in special_tokens:
            token = special.encode("utf-8")
            if token in ordinary:
                raise TokenizerError(f"special token {special!r} is an ordinary token; choose another text")
            if token not in others:
                others[token] = len(self._vocab)
                self._vocab[len(self._vocab)] = token
        ids = {special: others[special.encode("utf-8")] for special in special_tokens}
        return dict(sorted(ids.items(), key=lambda item: item[1]))

    @classmethod
    def from_files(
        cls, vocab_path: Path | str, merges_path: Path | str, special_tokens: Sequence[str] | None = None
    ) -> Self:
        """Read GPT-2's two files. Only the `special_tokens` named here are recognised in text.

        Raises `TokenizerError` that names file and line for what is wrong in them.
        """
        vocab, merges = io.read_tokenizer_files(vocab_path, merges_path)
        return cls(vocab, merges, special_tokens)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the files that `save` wrote. Raises `TokenizerError`.

        Its special tokens are the vocabulary's entries that no merge makes and that are not single bytes.
        """
        vocab, merges = io.read_tokenizer_files(Path(folder) / io.VOCAB_FILE, Path(folder) / io.MERGES_FILE)
        ordinary = ordinary_tokens(merges)
        return cls(vocab, merges, [token.decode("utf-8") for token in vocab.values() if token not in ordinary])

    def save(self, folder: Path | str) -> None:
        """Write `vocab.json` and `merges.txt` in GPT-2's form into `folder`, each atomically."""
        io.write_vocab(Path(folder) / io.VOCAB_FILE, self._vocab, self._merges)
        io.write_merges(Path(folder) / io.MERGES_FILE, self._merges)

    def __reduce__(
        self,
    ) -> tuple[type[Self], tuple[Mapping[int, bytes], Sequence[tuple[bytes, bytes]], list[str]]]:
        return type(self), (self._vocab, self._merges, list(self._special_tokens))

    @property
    def vocab(self) -> Mapping[int, bytes]:
        """From id to bytes, ids ascending."""
        return self._vocab

    @property
    def merges(self) -> Sequence[tuple[bytes, bytes]]:
        """The merges, the earliest first."""
        return self._merges

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """From text to id, ids ascending."""
        return self._special_tokens

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return len(self._vocab)

    @property
    def eos_token_id(self) -> int | None:
        """The id of `<|endoftext|>`, if that is a special token."""
        return self._special_tokens.get(END_OF_TEXT)

    def sha256(self) -> str:
        """Return the SHA-256 of what the tokenizer does, whatever file it came from.

        It is taken of compact JSON, [tokens, merges, special tokens]: all tokens in hexadecimal, ordered by
        id; the merges as pairs of such; the ids of the special tokens.
        """
        tokens = [token.hex() for token in self._vocab.values()]
        merges = [[left.hex(), right.hex()] for left, right in self._merges]
        content = json.dumps([tokens, merges, list(self._special_tokens.values())], separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def encode(self, text: str, *, allowed_special: Literal["all"] | Set[str] = "all") -> list[int]:
        """Return the ids of `text`.

        Special tokens not in `allowed_special` are encoded as the plain text they look like; for untrusted
        text give `set()`. Surrogates, which UTF-8 cannot express, are joined to their character where they
        form a pair and become U+FFFD where not, as in tiktoken.

        Raises `TokenizerError` if `allowed_special` names an unknown special token.
        """
        return list(chain.from_iterable(self._encode_blocks([text], allowed_special)))

    def encode_iterable(
        self, texts: Iterable[str], *, allowed_special: Literal["all"] | Set[str] = "all"
    ) -> Iterator[int]:
        """Yield the ids of the text that `texts` join to, the same however it is divided.

        Memory is constant: it holds a block of text, however long the whole is (but a single pre-token
        longer than a block is held whole). For other arguments and errors see `encode`.
        """
        return chain.from_iterable(self._encode_blocks(texts, allowed_special))

    def _encode_blocks(self, texts: Iterable[str], allowed_special: Literal["all"] | Set[str]) -> Iterator[list[int]]:
        if allowed_special == "all":
            allowed, pattern = self._special_tokens.keys(), self._pattern
        else:
            allowed = self._check_allowed(allowed_special)
            pattern = special_pattern(allowed)
        blocks = safe_blocks(repair_surrogates(texts), allowed)
        return (self._encode_block(block, pattern) for block in blocks)

    def _check_allowed(self, allowed_special: Set[str] | str) -> Set[str]:
        if isinstance(allowed_special, str):
            raise TokenizerError(f'allowed_special is {allowed_special!r}; give "all" or a set of special tokens')
        for special in allowed_special:
            if special not in self._special_tokens:
                raise TokenizerError(
                    f"allowed_special names {special!r}; the special tokens are {list(self._special_tokens)}"
                )
        return allowed_special

    def _encode_block(self, block: str, pattern: re.Pattern[str] | None) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(split_special(block, pattern)):
            if place % 2:
                ids.append(self._special_tokens[part])
            else:
                ids.extend(chain.from_iterable(map(self._piece_ids.__getitem__, pretokenize(part))))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, with U+FFFD for bytes that are not UTF-8.

        Raises `TokenizerError` for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, which need not be UTF-8. Raises `TokenizerError` as `decode`."""
        try:
            return b"".join(map(self._vocab.__getitem__, ids))
        except KeyError as error:
            raise TokenizerError(
                f"{error.args[0]!r} is no id of the vocabulary, whose size is {self.vocab_size}; "
                "decode with the tokenizer that made the ids"
            ) from None


@final
class _PieceIds(dict[str, tuple[int, ...]]):
    """From a pre-token to its ids, merged when first asked for and remembered if it is short.

    It starts anew when it is full. A dict with `__missing__`, so that the common case, a pre-token
    that was seen before, runs no Python code at all.
    """

    def __init__(self, vocab: Mapping[int, bytes], merges: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__()
        id_of = {token: token_id for token_id, token in vocab.items()}
        self._table: MergeTable = merge_table(merges)
        self._id_of_number = [id_of[bytes([byte])] for byte in range(256)]
        self._id_of_number += [id_of[left + right] for left, right in merges]

    def __missing__(self, piece: str) -> tuple[int, ...]:
        numbers = merge_bytes(piece.encode("utf-8"), self._table)
        ids = tuple(map(self._id_of_number.__getitem__, numbers))
        if len(piece) <= MAX_CACHED_CHARS:
            if len(self) >= MAX_CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


def _is_utf8(token: bytes) -> bool:
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
