"""Checks that a vocabulary and its merges form a tokenizer. The rest of the package relies on these rules.

A vocabulary maps ids to bytes. Ids may have gaps, single bytes may be missing, and a special token may have the bytes
of an ordinary one. Ordinary tokens have bytes of their own; each merge joins two of them to a third.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from transformerlm.utils.errors import TokenizerError, require_list

SINGLE_BYTES = [bytes([byte]) for byte in range(256)]
MAX_IDS = 1 << 21
"""Exclusive upper bound of ids; the tables of the kernels have 21 bits per token."""


@final
class TokenIds:
    """The ids that ordinary text is encoded to: ids of ordinary tokens, and of bytes that are not tokens.

    `unknown` is the id for a byte that is not a token; with None such bytes are dropped, as `tokenizers` does.
    """

    def __init__(self, id_of: Mapping[bytes, int], unknown: int | None = None) -> None:
        self.id_of = id_of
        self.of_byte = [id_of.get(token, unknown) for token in SINGLE_BYTES]
        self.missing = frozenset(byte for byte, token in enumerate(SINGLE_BYTES) if token not in id_of)

    def of_bytes(self, data: bytes) -> list[int]:
        """Return the ids of the single bytes of `data`, before any merge."""
        return [token_id for byte in data if (token_id := self.of_byte[byte]) is not None]


def ordinary_tokens(merges: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """Return the single bytes and merged tokens: these are ordinary tokens in any vocabulary."""
    return {*SINGLE_BYTES, *(left + right for left, right in merges)}


def check_vocab(vocab: Mapping[int, bytes], source: str) -> None:
    """Raise `TokenizerError`, beginning with `source`, unless `vocab` maps ids to bytes."""
    if not vocab:
        raise TokenizerError(f"{source}: has no tokens; give at least one")
    for token_id, token in vocab.items():
        if type(token_id) is not int or not isinstance(token, bytes):
            raise TokenizerError(f"{source}: {token_id!r}: {token!r} is not an id and its bytes; correct it")
        if not 0 <= token_id < MAX_IDS:
            raise TokenizerError(f"{source}: {token!r} has the id {token_id}; give one from 0 to {MAX_IDS - 1:,}")


def ordinary_ids(vocab: Mapping[int, bytes], special_ids: Collection[int], source: str) -> dict[bytes, int]:
    """Return the ids of ordinary tokens by their bytes.

    A special token's id is included if no other token has its bytes: it is then both.

    Raises `TokenizerError`, beginning with `source`, if two ordinary tokens have the same bytes.
    """
    id_of: dict[bytes, int] = {}
    for token_id, token in vocab.items():
        if token_id in special_ids:
            continue
        if token in id_of:
            raise TokenizerError(f"{source}: ids {id_of[token]} and {token_id} are both {token!r}; remove one")
        id_of[token] = token_id
    for token_id in special_ids:
        id_of.setdefault(vocab[token_id], token_id)
    return id_of


def check_merges(merges: Sequence[tuple[bytes, bytes]], tokens: Collection[bytes], where: Callable[[int], str]) -> None:
    """Raise `TokenizerError` unless each merge joins two of `tokens` to a third. `where(index)` locates a merge."""
    for index, (left, right) in enumerate(merges):
        for part in (left, right, left + right):
            if not part:
                problem = "joins nothing; remove it"
            elif part not in tokens:
                problem = f"needs {part!r}, which the vocabulary lacks; give the vocabulary that belongs to it"
            else:
                continue
            raise TokenizerError(f"{where(index)}: the merge of {left!r} and {right!r} {problem}")


def check_id_array(ids: npt.NDArray[np.generic]) -> None:
    """Raise `TokenizerError` unless `ids` is an array of integers in one dimension."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TokenizerError(
            f"the ids are an array of {ids.dtype} in {ids.ndim} dimensions; give an array of integers in one dimension"
        )


def check_ends(ends: npt.NDArray[np.int64], length: int) -> None:
    """Raise `TokenizerError` unless `ends` are the ends of texts with `length` bytes in total."""
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise TokenizerError(f"ends is an array of {ends.dtype} in {ends.ndim} dimensions; give integers in one")
    starts_and_ends = np.concatenate(([0], ends.astype(np.int64, copy=False)))
    if (np.diff(starts_and_ends) < 0).any() or starts_and_ends[-1] != length:
        raise TokenizerError(
            f"ends does not say where texts end in {length} bytes; give places from 0 on, ascending, the last {length}"
        )


def unknown_id(token_id: object, vocab_size: int) -> TokenizerError:
    """Return the error for an unknown id."""
    if isinstance(token_id, int) and 0 <= token_id < vocab_size:
        return TokenizerError(f"{token_id} is the id of no token: the ids of the vocabulary have a gap there")
    return TokenizerError(
        f"{token_id!r} is no id of the vocabulary, whose size is {vocab_size}; "
        "decode with the tokenizer that made the ids"
    )


def check_special_tokens(special_tokens: Iterable[str]) -> None:
    """Raise `TokenizerError` unless the special tokens are distinct texts, none of them empty."""
    require_list("special_tokens", special_tokens)
    seen: set[str] = set()
    for token in special_tokens:
        if token in seen:
            raise TokenizerError(f"special token {token!r} is given twice; give it once")
        if not token:
            raise TokenizerError("a special token is empty; give it a text")
        seen.add(token)
        try:
            token.encode("utf-8")
        except UnicodeEncodeError:
            raise TokenizerError(f"special token {token!r} is not valid Unicode; choose another text") from None
