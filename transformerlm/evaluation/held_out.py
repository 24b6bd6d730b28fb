r"""Loss, perplexity and bits per byte on text that a model was not trained on.

Scored ids. A document is the ids of its text, followed by end-of-text if the tokenizer has that token. Every id is
scored exactly once, end-of-text included, since the model must also predict where a text ends:

    loss           nats of all ids, ends included / number of ids, ends included       (as in training's validation)
    perplexity     e^loss
    bits per byte  nats of all ids, ends included / ln 2 / bytes of the texts
    text bits per byte   nats of all ids, ends excluded / ln 2 / bytes of the texts    (as in lm-evaluation-harness)

Bytes are the UTF-8 bytes of the documents' text, without special tokens and separators. Bits per byte compares models
with different tokenizers, since their tokens differ but the bytes do not.

Context. The model sees windows (`training.scoring.SlidingWindows`), in one of two ways:

    documents   <|end|> a a a a <|end|>      each document by itself, after the id that begins one. The default: the
                <|end|> b b <|end|>          result depends on the texts only, not on the order in the file

    stream      <|end|> a a a a <|end|> b b <|end|> …     all documents as one stream, with windows across their ends,
                                             as in training without document masks

The first id is predicted from beginning-of-text, or from end-of-text, which precedes documents in training. A tokenizer
with neither cannot separate documents, so only "stream" is possible; its first id then counts as ln V nats, as for a
uniform distribution.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from transformerlm.evaluation.scorer import Row, Scored
from transformerlm.token_files.documents import document_begins
from transformerlm.token_files.index import TokenFileInfo
from transformerlm.token_files.stream import TokenStream
from transformerlm.training.data import Tokens
from transformerlm.training.scoring import SlidingWindows, bits_per_byte, perplexity
from transformerlm.utils.errors import DataError

OnScored = Callable[[int], None]
"""Called with the number of ids scored so far."""


@dataclass(frozen=True)
class HeldOut:
    """The scores of a model on a text, defined in the module's docstring."""

    nats: float
    """Sum over all ids, in float64."""
    end_nats: float
    """Sum over the end-of-text ids."""
    num_tokens: int
    num_ends: int
    num_bytes: int
    num_documents: int
    num_windows: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Per-token perplexity."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte, end-of-text included."""
        return bits_per_byte(self.nats, self.num_bytes)

    @property
    def text_bits_per_byte(self) -> float:
        """Bits per byte, end-of-text excluded."""
        return bits_per_byte(self.nats - self.end_nats, self.num_bytes)


@dataclass(frozen=True)
class Prefixed:
    """Ids preceded by one more id; implements `Tokens`."""

    first: int
    tokens: Tokens

    def __len__(self) -> int:
        return 1 + len(self.tokens)

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]:
        begin, end, _ = part.indices(len(self))
        rest = self.tokens[max(0, begin - 1) : max(0, end - 1)]
        return np.concatenate(([self.first], rest)) if begin == 0 < end else rest


@dataclass(frozen=True)
class TokenSlice:
    """A range of a longer stream, read lazily; implements `Tokens`."""

    tokens: Tokens
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]:
        begin, end, _ = part.indices(len(self))
        return self.tokens[self.begin + begin : self.begin + end]


def rows_of(tokens: Tokens, *, context_length: int, stride: int) -> Iterator[Row]:
    """Yield windows over `tokens` that score each of them once, except the first."""
    for span in SlidingWindows(len(tokens), context_length, stride):
        yield Row(tokens[span.begin : span.end + 1].astype(np.int64), span.first_scored)


def file_documents(path: Path, info: TokenFileInfo, stream: TokenStream) -> Iterator[Tokens]:
    """Yield the documents of a token file, end-of-text included. Raises the errors of `document_begins`."""
    batches = (begins.tolist() for begins in document_begins(path, info, stream))
    bounds = chain(chain.from_iterable(batches), [len(stream)])
    for begin, end in pairwise(bounds):
        if begin >= end:
            raise DataError(
                f"{path}: its list of documents is not in order; make it again with transformerlm-make-data"
            )
        yield TokenSlice(stream, begin, end)


@final
class Tally:
    """Adds up the scores of windows."""

    def __init__(self, end_of_text_id: int | None, on_scored: OnScored | None) -> None:
        self._end_of_text_id = end_of_text_id
        self._on_scored = on_scored
        self.nats = self.end_nats = 0.0
        self.num_tokens = self.num_ends = self.num_windows = 0

    def add(self, row: Row, scored: Scored) -> None:
        """Add the scores of a row's targets."""
        nats = scored.nats
        self.nats += float(nats.sum())
        if self._end_of_text_id is not None:
            ends = row.targets == self._end_of_text_id
            self.end_nats += float(nats[ends].sum())
            self.num_ends += int(ends.sum())
        self.num_tokens += len(nats)
        self.num_windows += 1
        if self._on_scored is not None:
            self._on_scored(self.num_tokens)

    def add_uniform(self, vocab_size: int) -> None:
        """Add an id with a uniform probability over the vocabulary."""
        self.nats += math.log(vocab_size)
        self.num_tokens += 1

    def result(self, *, num_bytes: int, num_documents: int) -> HeldOut:
        """Return the sums, for texts with `num_bytes` in total."""
        return HeldOut(
            self.nats, self.end_nats, self.num_tokens, self.num_ends, num_bytes, num_documents, self.num_windows
        )
