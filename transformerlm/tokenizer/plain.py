"""The pure-Python backend: encodes text with `bpe`, and caches the ids of the pre-tokens it has seen."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Protocol, final

from transformerlm.tokenizer.bpe import Merge, encode_pretoken, merge_table
from transformerlm.tokenizer.pretokenize import GPT2, pretokenize, split_special
from transformerlm.tokenizer.utf8 import to_bytes
from transformerlm.tokenizer.validation import TokenIds

MAX_CACHED = 1 << 18  # pre-tokens; about 60 MB
MAX_CACHED_CHARS = 64


class SpecialTokens(Protocol):
    """The special tokens to recognise, and the pattern that finds them (None if there are none)."""

    @property
    def ids(self) -> Mapping[str, int]: ...

    @property
    def pattern(self) -> re.Pattern[str] | None: ...


@final
class PlainEncoder:
    """Encodes text, given the ids of tokens and the merges (the lowest rank first).

    `pattern` is one of `pretokenize.PATTERNS`; `whole_words` maps pre-tokens that are never merged to their ids.
    """

    def __init__(
        self,
        ids: TokenIds,
        merges: Sequence[Merge],
        *,
        pattern: str = GPT2,
        whole_words: Mapping[bytes, int] | None = None,
    ) -> None:
        self._pattern = pattern
        self._ids_of = _PretokenCache(ids, merges, whole_words or {})

    def encode(self, text: str, specials: SpecialTokens) -> list[int]:
        """Return the ids of `text`, in which surrogates represent bytes as in `encode_pretoken`."""
        ids: list[int] = []
        for place, part in enumerate(split_special(text, specials.pattern)):
            if place % 2:
                ids.append(specials.ids[part])
            else:
                ids.extend(chain.from_iterable(map(self._ids_of.__getitem__, pretokenize(part, self._pattern))))
        return ids


@final
class _PretokenCache(dict[str, tuple[int, ...]]):
    """From a pre-token to its ids: merged on first use, and cached if the pre-token is short.

    The cache is emptied when it is full. It is a dict with `__missing__`, so that a hit, the common case, runs no
    Python code.
    """

    def __init__(self, ids: TokenIds, merges: Sequence[Merge], whole_words: Mapping[bytes, int]) -> None:
        super().__init__()
        self._whole_words = whole_words
        self._token_ids = ids
        self._table = merge_table(merges, ids.id_of)

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        whole = self._whole_words.get(to_bytes(pretoken)) if self._whole_words else None
        ids = (whole,) if whole is not None else tuple(encode_pretoken(pretoken, self._token_ids, self._table))
        if len(pretoken) <= MAX_CACHED_CHARS:
            if len(self) >= MAX_CACHED:
                self.clear()
            self[pretoken] = ids
        return ids
