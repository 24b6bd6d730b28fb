"""Tiktoken's files: a line per token with its bytes in base64 and its rank, which is both its id and its merge order.

    IQ== 0
    Ig== 1
    …
    IHRoZQ== 279

Special tokens and the pattern are not in the file, and neither are the merges: tiktoken merges the pair whose merged
token has the lowest rank. `merges_of_ranks` recovers them. How the bytes of a token merge does not depend on the bytes
around them, unless another token crosses their ends. So each token is only made in one way, the same as when its bytes
are merged alone. The last step of that is the only merge that makes the token.
"""

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from transformerlm.tokenizer.bpe import Merge, MergeTable, merge_ids, merge_table
from transformerlm.tokenizer.pretokenize import CL100K, O200K, pretokenize
from transformerlm.tokenizer.utf8 import to_text
from transformerlm.tokenizer.validation import MAX_IDS, SINGLE_BYTES, TokenIds, ordinary_tokens
from transformerlm.utils.errors import TokenizerError
from transformerlm.utils.files import atomic_write_bytes
from transformerlm.utils.json_file import read_bounded

MAX_BYTES = 1 << 26
PATTERN_OF_NAME = {"cl100k_base.tiktoken": CL100K, "o200k_base.tiktoken": O200K}
"""OpenAI's files whose pattern is not GPT-2's, `r50k_base.tiktoken`'s and `p50k_base.tiktoken`'s."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the tokens of a file and their ranks; raise `TokenizerError`, naming the line, for an invalid file."""
    ranks: dict[bytes, int] = {}
    taken: set[int] = set()
    for number, line in enumerate(read_bounded(path, max_bytes=MAX_BYTES, error=TokenizerError).splitlines(), start=1):
        if not line:
            continue
        token, rank = _entry(line, f"{path} (line {number})")
        if token in ranks or rank in taken:
            raise TokenizerError(f"{path} (line {number}): token or rank is there a second time; restore the file")
        ranks[token] = rank
        taken.add(rank)
    missing = [token for token in SINGLE_BYTES if token not in ranks]
    if missing:
        raise TokenizerError(f"{path}: {len(missing)} of the 256 single bytes are missing; restore the file")
    return ranks


def _entry(line: bytes, where: str) -> tuple[bytes, int]:
    parts = line.split(b" ")
    if len(parts) == 2 and parts[1].isdigit() and len(parts[1]) <= len(str(MAX_IDS)):
        try:
            token = base64.b64decode(parts[0], validate=True)
        except binascii.Error:
            token = b""
        if token and int(parts[1]) < MAX_IDS:
            return token, int(parts[1])
    raise TokenizerError(f"{where}: {line[:80]!r} is not a token in base64 and its rank; restore the file")


def full_vocab(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> dict[int, bytes]:
    """Return the vocabulary of a file and special tokens; there may be gaps, as in `cl100k_base` and `o200k_base`.

    Raises `TokenizerError` for a special token that has the id of another token, or an id too large.
    """
    vocab = {rank: token for token, rank in ranks.items()}
    for special, token_id in special_tokens.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_IDS:
            raise TokenizerError(f"special token {special!r} has the id {token_id!r}; give one below {MAX_IDS:,}")
        if token_id in vocab:
            raise TokenizerError(f"special token {special!r} has the id of {vocab[token_id]!r}; give it its own")
        vocab[token_id] = special.encode("utf-8")
    return vocab


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Merge]:
    """Return the merges that reproduce tiktoken's merging by `ranks`, the lowest rank first.

    Tokens that merging never makes get no merge. `ranks` contains all single bytes.
    """
    return live_merges(ranks, rank_table(ranks))


def rank_table(ranks: Mapping[bytes, int]) -> MergeTable:
    """Return the table by which tiktoken merges: a pair that makes a token has the token's rank, which is its id."""
    lengths = set(map(len, ranks))
    return {
        (ranks[token[:at]], ranks[token[at:]]): (rank, rank)
        for token, rank in ranks.items()
        for at in lengths
        if len(token) - at in lengths and token[:at] in ranks and token[at:] in ranks
    }


def live_merges(id_of: Mapping[bytes, int], table: MergeTable) -> list[Merge]:
    """Return the merges of a table that can ever apply, the lowest rank first; at most one for each token."""
    token_ids = TokenIds(id_of)
    token_of = {token_id: token for token, token_id in id_of.items()}
    found: list[tuple[int, Merge]] = []
    for token, token_id in id_of.items():
        if token_ids.missing.isdisjoint(token):
            parts = merge_ids(token_ids.of_bytes(token), table, at_least=2)
            rank, made = table.get((parts[0], parts[1]), (0, None)) if len(parts) == 2 else (0, None)
            if made == token_id:
                found.append((rank, (token_of[parts[0]], token_of[parts[1]])))
    return [pair for _, pair in sorted(found)]


def write_ranks(
    path: Path,
    id_of: Mapping[bytes, int],
    merges: Sequence[Merge],
    special_ids: Collection[int],
    *,
    pattern: str,
    whole_words: bool,
) -> None:
    """Write a file with which tiktoken gives the same ids, atomically.

    Entries that are not a pre-token, and so can never be used, are left out.

    Raises `TokenizerError` if the format cannot express the tokenizer: in it ids are ranks, all single bytes are
    required, and a pre-token that is in the vocabulary is never merged.
    """
    if not id_of.keys() >= set(SINGLE_BYTES):
        raise TokenizerError("tiktoken needs a token for each single byte, and some are missing; keep vocab.json")
    ordinary = ordinary_tokens(merges)
    ranks = {
        token: token_id
        for token, token_id in id_of.items()
        if token in ordinary
        or (token_id not in special_ids and pretokenize(to_text(token), pattern) == [to_text(token)])
    }
    live = live_merges(ranks, merge_table(merges, id_of))
    if merges_of_ranks(ranks) != live:
        raise TokenizerError("tiktoken takes ids for the ranks of merges, and the merges have others; keep vocab.json")
    unmade = ranks.keys() - SINGLE_BYTES - {left + right for left, right in live}
    if unmade and not whole_words:
        raise TokenizerError(
            f"tiktoken would use {min(unmade)!r}, which no merge makes; make the tokenizer with whole_words"
        )
    lines = [
        b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    atomic_write_bytes(path, b"".join(lines))
