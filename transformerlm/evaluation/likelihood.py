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
from transformerlm.utils.errors import ConfigError, DataError, require_list


class Continuations(NamedTuple):
    """A row of ids for each text that may follow a context."""

    rows: list[Row]
    num_dropped: int
    """Ids of the context that were left out at its beginning, for want of room."""


def beginning_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that comes before a document: of a token for it or, in training's data, of the end of another."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a special token, as in the data that models are trained on."""
    return tokenizer.encode(text, allowed_special=set())


def prompt_ids(tokenizer: Tokenizer, text: str, *, most: int) -> list[int]:
    """Return the ids of a text that is to be continued, begun as in `continuation_rows`; of too many, the last ones."""
    ids = encode_plain(tokenizer, text)
    prefix = _prefix(tokenizer, begins_empty=not ids)
    return prefix + ids[max(0, len(prefix) + len(ids) - most) :]


def continuation_rows(
    tokenizer: Tokenizer, context: str, continuations: Sequence[str], *, context_length: int
) -> Continuations:
    """Return rows that score each of `continuations` after `context`.

    A beginning-of-text token comes first, if the tokenizer has one. Without it, a context that is empty, or that a
    continuation's first token swallows, is the end-of-text token. Where a row has no room in `context_length` inputs,
    ids at the beginning of the context are left out, as many for every continuation. Raises `DataError` for a
    continuation that is empty or has no room even so, and `ConfigError` if there is no token to begin with.
    """
    require_list("continuations", continuations)
    if not all(continuations):
        raise DataError("a continuation is empty, so that there is nothing to score")
    alone = encode_plain(tokenizer, context.rstrip())
    wholes = [encode_plain(tokenizer, context + continuation) for continuation in continuations]
    begin = min(min(_first_difference(alone, whole), len(whole) - 1) for whole in wholes)
    prefix = _prefix(tokenizer, begins_empty=begin == 0)
    longest = max(map(len, wholes))
    dropped = max(0, len(prefix) + longest - 1 - context_length)
    if dropped > begin or dropped == begin + len(prefix):
        raise DataError(
            f"a continuation of {longest - begin:,} tokens has no room after its context in the {context_length:,} "
            "that the model sees; shorten it"
        )
    first_scored = len(prefix) + begin - dropped - 1
    rows = [Row(np.array(prefix + whole[dropped:], dtype=np.int64), first_scored) for whole in wholes]
    return Continuations(rows, dropped)


def _prefix(tokenizer: Tokenizer, *, begins_empty: bool) -> list[int]:
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    if not begins_empty:
        return []
    if tokenizer.eos_token_id is None:
        raise ConfigError("a context is empty, and the tokenizer has no end-of-text token to begin with")
    return [tokenizer.eos_token_id]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))
