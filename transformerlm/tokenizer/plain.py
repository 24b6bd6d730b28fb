"""The plain encoder: text to ids as the textbook has it. For short texts, and as the oracle of the compiled one.

A pre-token is merged when it is first met; since most come again and again, their ids are remembered.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Protocol, final

from transformerlm.tokenizer.merge import merge_ids, merge_table
from transformerlm.tokenizer.pretokenize import GPT2, pretokenize
from transformerlm.tokenizer.utf8 import to_bytes
from transformerlm.tokenizer.validation import TokenIds

MAX_REMEMBERED = 1 << 18  # pre-tokens; about 60 MB
MAX_REMEMBERED_CHARS = 64


class SpecialTokens(Protocol):
    """The special tokens that are looked for, and the pattern that finds them (None if there are none)."""

    @property
    def ids(self) -> Mapping[str, int]: ...

    @property
    def pattern(self) -> re.Pattern[str] | None: ...


@final
class PlainEncoder:
    """Encodes text with the ids of tokens and merges (the lowest rank first).

    `pattern` is one of `pretokenize.PATTERNS`, and `whole_words` the pre-tokens that have an id without being merged.
    """

    def __init__(
        self,
        ids: TokenIds,
        merges: Sequence[tuple[bytes, bytes]],
        *,
        pattern: str = GPT2,
        whole_words: Mapping[bytes, int] | None = None,
    ) -> None:
        self._pattern = pattern
        self._ids_of = _PieceIds(ids, merges, whole_words or {})

    def encode(self, text: str, specials: SpecialTokens) -> list[int]:
        """Return the ids of `text`.

        A surrogate U+DC80 to U+DCFF stands for a byte that is not UTF-8, as in Python's "surrogateescape".
        """
        ids_of = self._ids_of.__getitem__
        if specials.pattern is None or specials.pattern.search(text) is None:
            return list(chain.from_iterable(map(ids_of, pretokenize(text, self._pattern))))
        ids: list[int] = []
        for place, part in enumerate(specials.pattern.split(text)):
            if place % 2:
                ids.append(specials.ids[part])
            else:
                ids.extend(chain.from_iterable(map(ids_of, pretokenize(part, self._pattern))))
        return ids


@final
class _PieceIds(dict[str, tuple[int, ...]]):
    """From a pre-token to its ids, merged when first asked for and remembered if it is short.

    It starts anew when it is full. A dict with `__missing__`, so that the common case, a pre-token
    that was seen before, runs no Python code at all.
    """

    def __init__(self, ids: TokenIds, merges: Sequence[tuple[bytes, bytes]], whole_words: Mapping[bytes, int]) -> None:
        super().__init__()
        self._whole_words = whole_words
        self._token_ids = ids
        self._table = merge_table(merges, ids.id_of)

    def __missing__(self, piece: str) -> tuple[int, ...]:
        data = to_bytes(piece)
        if data in self._whole_words:
            ids: tuple[int, ...] = (self._whole_words[data],)
        else:
            ids = tuple(merge_ids(self._token_ids.of_bytes(data), self._table))
        if len(piece) <= MAX_REMEMBERED_CHARS:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[piece] = ids
        return ids
