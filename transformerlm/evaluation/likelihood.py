"""Rows of ids that score continuations of a context.

A token may span the border between context and continuation, so encoding them separately is wrong. Both are encoded
together, and scoring begins where the ids first differ from the ids of the context alone. All continuations of a
context are scored from the earliest such position, so that their probabilities are conditioned on the same ids. White
space at the end of a context is encoded with the word that follows it.

lm-evaluation-harness has the same rules, and different scores only if a token spans the border: it does not score that
token, which makes such a continuation look more likely than it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformerlm.evaluation.scorer import Row
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import ConfigError, DataError, require_list


class Continuations(NamedTuple):
    """A row of ids for each continuation of a context."""

    rows: list[Row]
    num_dropped: int
    """Ids that were cut off at the beginning of the context to fit the model's context."""


def start_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that comes before a document: beginning-of-text, or else end-of-text, as in training data."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text without parsing special tokens, as training data is encoded."""
    return tokenizer.encode(text, allowed_special=set())


def prompt_ids(tokenizer: Tokenizer, text: str, *, max_tokens: int) -> list[int]:
    """Return the last `max_tokens` ids of a prompt, which begins as in `continuation_rows`."""
    ids = encode_plain(tokenizer, text)
    prefix = _prefix(tokenizer, begins_empty=not ids)
    return prefix + ids[max(0, len(prefix) + len(ids) - max_tokens) :]


def continuation_rows(
    tokenizer: Tokenizer, context: str, continuations: Sequence[str], *, context_length: int
) -> Continuations:
    """Return rows that score each of `continuations` after `context`.

    A row begins with beginning-of-text if the tokenizer has that token. Otherwise, if the context is empty or merges
    completely into a continuation's first token, it begins with end-of-text. If a row exceeds `context_length` inputs,
    the same number of ids is cut off at the beginning of the context for all continuations. Raises `DataError` for a
    continuation that is empty or does not fit even then, `ConfigError` if there is no token to begin with.
    """
    require_list("continuations", continuations)
    if not all(continuations):
        raise DataError("a continuation is empty, so there is nothing to score")
    alone = encode_plain(tokenizer, context.rstrip())
    wholes = [encode_plain(tokenizer, context + continuation) for continuation in continuations]
    begin = min(min(_first_difference(alone, whole), len(whole) - 1) for whole in wholes)
    prefix = _prefix(tokenizer, begins_empty=begin == 0)
    longest = max(map(len, wholes))
    dropped = max(0, len(prefix) + longest - 1 - context_length)
    if dropped > begin or dropped == begin + len(prefix):
        raise DataError(
            f"a continuation of {longest - begin:,} tokens does not fit in the model's context of {context_length:,}; "
            "shorten it"
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
