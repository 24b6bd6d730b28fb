"""Merges from what other projects write in their place: from ranks, and from lists that name a token's making twice.

Byte-pair encoding is a sequence of merges, and what happens inside a stretch of bytes does not depend on the bytes
around it, unless a token reaches beyond it. So a token is only ever made in one way: the way in which it is made when
its own bytes are merged alone. That finds the merge of a token of which only the rank is known, as in tiktoken's files,
and the one that counts among several for the same token, as in tokenizers that were converted from such files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from transformerlm.tokenizer.checks import SINGLE_BYTES
from transformerlm.tokenizer.merge import MergeTable, merge_bytes
from transformerlm.utils.errors import TokenizerError, shown

Pair = tuple[bytes, bytes]


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Pair]:
    """Return the merges that make the tokens of `ranks`, the earliest first; tokens that no merge makes have none.

    Where tokens stand side by side that together are a token, tiktoken joins those of the lowest rank. The merges do
    the same. `ranks` has all single bytes.

    Raises `TokenizerError` for ranks that no list of merges can express: a token before its parts.
    """
    known = _Known()
    unmade: list[bytes] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            parts = known.parts(token)
            if len(parts) == 2:
                known.add((parts[0], parts[1]))
            else:
                unmade.append(token)
    for token in unmade:
        if len(known.parts(token)) == 2:
            raise TokenizerError(
                f"the token {token!r} has a lower rank than its parts; give ranks as training made them"
            )
    return known.merges


def live_merges(merges: Sequence[Pair]) -> list[Pair]:
    """Return `merges` without those that never apply, if several make the same token.

    Of several merges that make the same token, at most one ever applies, and none whose parts are never made.

    Raises `TokenizerError` for a merge that stands before the one that makes its part, or is given twice.
    """
    if len(set(merges)) < len(merges):
        pair = next(pair for pair, count in Counter(merges).items() if count > 1)
        raise TokenizerError(f"the merge of {shown(pair[0])} and {shown(pair[1])} is given twice; remove one")
    ways = Counter(left + right for left, right in merges)
    known = _Known()
    unknown_parts: set[bytes] = set()
    for left, right in merges:
        missing = [part for part in (left, right) if part not in known.numbers]
        unknown_parts.update(missing)
        token = left + right
        if missing or token in known.numbers:
            continue
        if ways[token] == 1 or known.parts(token) == [left, right]:
            known.add((left, right))
    for part in unknown_parts:
        if part in known.numbers:
            raise TokenizerError(f"a merge uses {shown(part)} before the merge that makes it; restore the order")
    return known.merges


class _Known:
    """The merges found so far, by numbers as in `merge`."""

    def __init__(self) -> None:
        self.tokens = list(SINGLE_BYTES)
        self.numbers = {token: number for number, token in enumerate(self.tokens)}
        self.merges: list[Pair] = []
        self._table: MergeTable = {}

    def add(self, pair: Pair) -> None:
        left, right = pair
        self._table[self.numbers[left], self.numbers[right]] = len(self.tokens)
        self.numbers[left + right] = len(self.tokens)
        self.tokens.append(left + right)
        self.merges.append(pair)

    def parts(self, token: bytes) -> list[bytes]:
        """Return the tokens that the merges found so far make of the bytes of `token`."""
        return [self.tokens[number] for number in merge_bytes(token, self._table)]
