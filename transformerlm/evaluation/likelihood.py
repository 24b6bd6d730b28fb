"""The likelihood of a text after another: from strings to rows of ids.

A text's tokens are not those of its beginning and those of its end put together: merges go across. So the whole is
encoded, and what is scored begins where its ids and those of the context by itself first differ. With several
continuations of one context all are scored from the same place on, the earliest: probabilities of different texts are
compared after the same ids. White space at the end of a context belongs to the word that follows; it is encoded with it
(both rules as in lm-evaluation-harness, whose scores differ only where a token lies across the border: it leaves out
the ids that the border spoils, which makes such a continuation look likelier than it is).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformerlm.evaluation.scorer import Row
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import ConfigError, DataError


class Continuations(NamedTuple):
    """A row of ids for each text that may follow a context."""

    rows: list[Row]
    num_dropped: int
    """Ids of the context that were left out at its beginning, for want of room."""


def beginning_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that comes before a document, if the tokenizer has such a token."""
    return tokenizer.eos_token_id


def encode_plain(tokenizer: Tokenizer, text: str | bytes) -> list[int]:
    """Return the ids of a text in which nothing is a special token, as in the data that models are trained on."""
    return tokenizer.encode(text, allowed_special=set())


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text that is to be continued; an empty one is the token that comes before a document."""
    return encode_plain(tokenizer, text) or [_require_beginning_id(tokenizer)]


def continuation_rows(
    tokenizer: Tokenizer, context: str, continuations: Sequence[str], *, context_length: int
) -> Continuations:
    """Return rows that score each of `continuations` after `context`.

    A context that is empty, or that a continuation's first token swallows, is the token that comes before a document.
    Where a row has no room in `context_length` inputs, ids at the beginning of the context are left out, as many for
    every continuation. Raises `DataError` for a continuation that has no room even so, and `ConfigError` if a context
    is empty and there is no token to begin with.
    """
    kept = context.rstrip()
    alone = encode_plain(tokenizer, kept)
    wholes = [encode_plain(tokenizer, context + continuation) for continuation in continuations]
    begin = min(_first_difference(alone, whole) for whole in wholes)
    prefix = [] if begin else [_require_beginning_id(tokenizer)]
    begin += len(prefix)
    wholes = [prefix + whole for whole in wholes]
    begin = min(begin, *(len(whole) - 1 for whole in wholes))
    longest = max(map(len, wholes)) - 1
    dropped = max(0, longest - context_length)
    if dropped >= begin:
        raise DataError(
            f"a continuation of {longest + 1 - begin:,} tokens has no room after its context in the "
            f"{context_length:,} that the model sees; shorten it"
        )
    rows = [Row(np.array(whole[dropped:], dtype=np.int64), begin - dropped - 1) for whole in wholes]
    return Continuations(rows, dropped)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _require_beginning_id(tokenizer: Tokenizer) -> int:
    found = beginning_id(tokenizer)
    if found is None:
        raise ConfigError("a context is empty, and the tokenizer has no end-of-text token to begin with")
    return found
