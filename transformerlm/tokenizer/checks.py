"""What makes a vocabulary and its merges a tokenizer. Everything else in the package relies on it.

The ids are 0, 1, 2, …; no token has two; every single byte has one. Each merge makes one new token of two
that are there: single bytes or products of earlier merges. What else is in the vocabulary are special tokens.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from transformerlm.utils.errors import TokenizerError

SINGLE_BYTES = [bytes([byte]) for byte in range(256)]


def ordinary_tokens(merges: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """Return the tokens that are not special: single bytes and products of merges."""
    return {*SINGLE_BYTES, *(left + right for left, right in merges)}


def check_vocab(vocab: Mapping[int, bytes], source: str) -> None:
    """Raise `TokenizerError`, beginning with `source`, unless ids and tokens are as the module says."""
    ids: dict[bytes, int] = {}
    for token_id, token in vocab.items():
        if type(token_id) is not int or not isinstance(token, bytes):
            raise TokenizerError(f"{source}: {token_id!r}: {token!r} is not an id and its bytes; correct it")
        if token in ids:
            raise TokenizerError(f"{source}: ids {ids[token]} and {token_id} are both {token!r}; remove one")
        ids[token] = token_id
    for expected, token_id in enumerate(sorted(vocab)):
        if token_id != expected:
            raise TokenizerError(f"{source}: the ids have a gap: {expected} is missing; number the tokens 0, 1, 2, …")
    missing = [token for token in SINGLE_BYTES if token not in ids]
    if missing:
        raise TokenizerError(
            f"{source}: {len(missing)} of the 256 single bytes are missing, the first is {missing[0]!r}; "
            "a byte-level vocabulary has them all"
        )


def check_merges(
    merges: Sequence[tuple[bytes, bytes]], vocab: Mapping[int, bytes], where: Callable[[int], str]
) -> None:
    """Raise `TokenizerError` unless each merge makes one new token of the vocabulary from two earlier ones.

    `where(index)` says where the merge stands, for the message.
    """
    in_vocab = set(vocab.values())
    known = set(SINGLE_BYTES)
    for index, (left, right) in enumerate(merges):
        problem = _merge_problem(left, right, known, in_vocab)
        if problem:
            raise TokenizerError(f"{where(index)}: the merge of {left!r} and {right!r} {problem}")
        known.add(left + right)


def _merge_problem(left: bytes, right: bytes, known: set[bytes], in_vocab: Collection[bytes]) -> str | None:
    for part in (left, right):
        if part not in known:
            return f"uses {part!r}, which is no byte and no earlier merge makes; restore the file or its order"
    if left + right in known:
        return f"makes {left + right!r} a second time; remove it"
    if left + right not in in_vocab:
        return f"makes {left + right!r}, which the vocabulary lacks; give the vocabulary that belongs to it"
    return None


def check_id_array(ids: npt.NDArray[np.generic]) -> None:
    """Raise `TokenizerError` unless `ids` is an array of integers in one dimension."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TokenizerError(
            f"the ids are an array of {ids.dtype} in {ids.ndim} dimensions; give an array of integers in one dimension"
        )


def unknown_id(token_id: object, vocab_size: int) -> TokenizerError:
    """Return the error for an id that is not in the vocabulary."""
    return TokenizerError(
        f"{token_id!r} is no id of the vocabulary, whose size is {vocab_size}; "
        "decode with the tokenizer that made the ids"
    )
