"""Merges from ranks, as in tiktoken's files, where the rank of a pair is that of the token that it makes.

What happens inside a stretch of bytes does not depend on the bytes around it, unless a token reaches beyond it. So a
token is only ever made in one way: the way in which it is made when its own bytes are merged alone. The last step of
that is the one merge of the token that ever applies.
"""

from collections.abc import Mapping

from transformerlm.tokenizer.bpe import MergeTable, merge_ids
from transformerlm.tokenizer.validation import TokenIds

Pair = tuple[bytes, bytes]


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Pair]:
    """Return the merges that make the tokens of `ranks` as tiktoken does, the lowest rank first.

    Tokens that are never made have none. `ranks` has all single bytes.
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


def live_merges(id_of: Mapping[bytes, int], table: MergeTable) -> list[Pair]:
    """Return the merges of a table that can ever apply, the lowest rank first; at most one for each token."""
    token_ids = TokenIds(id_of)
    token_of = {token_id: token for token, token_id in id_of.items()}
    found: list[tuple[int, Pair]] = []
    for token, token_id in id_of.items():
        if token_ids.missing.isdisjoint(token):
            parts = merge_ids(token_ids.of_bytes(token), table, at_least=2)
            rank, made = table.get((parts[0], parts[1]), (0, None)) if len(parts) == 2 else (0, None)
            if made == token_id:
                found.append((rank, (token_of[parts[0]], token_of[parts[1]])))
    return [pair for _, pair in sorted(found)]
