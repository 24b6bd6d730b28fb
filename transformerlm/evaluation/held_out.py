r"""How well a model predicts text that it was not trained on: loss, perplexity and bits per byte.

What is scored. A document is the ids of its text and, where the tokenizer has one, the end-of-text id after them.
Every one of these ids is scored exactly once, the end of text too: that a text ends here is for the model to say. So

    loss           nats of all ids, ends included / number of ids, ends included       (as in training's validation)
    perplexity     e^loss
    bits per byte  nats of all ids, ends included / ln 2 / bytes of the texts
    the same of the text alone   nats of all ids but the ends / ln 2 / bytes of the texts  (as lm-evaluation-harness)

The bytes are those of the documents' text as UTF-8. A special token stands for no bytes; what separates documents in a
file is not text. Bits per byte compares models of different tokenizers: their tokens differ, and the bytes do not.

What is seen. The model is given windows (`training.scoring.SlidingWindows`), in one of two ways:

    documents   <|end|> a a a a <|end|>      each document by itself, after the id that begins one: what lies before it
                <|end|> b b <|end|>          in the file makes no difference. The default, since the result then depends
                                             on the texts only, not on the order in which they were shuffled
    stream      <|end|> a a a a <|end|> b b <|end|> …     all documents as one, windows across their ends: what the
                                             model saw in training, unless that was masked

The very first id, which nothing comes before, is predicted from the beginning-of-text token, or the end-of-text token,
which is what comes before a document in training. A tokenizer that has neither cannot tell documents apart; it leaves
the stream, whose first id is then counted as one of a uniform distribution, ln V nats: nothing says more about it.
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
"""Told how many ids have been scored so far."""


@dataclass(frozen=True)
class HeldOut:
    """What a model held of a text, see above."""

    nats: float
    """Of all ids, summed in float64."""
    end_nats: float
    """Of those that end a document."""
    num_tokens: int
    num_ends: int
    num_bytes: int
    num_documents: int
    num_windows: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Of text and ends of text."""
        return bits_per_byte(self.nats, self.num_bytes)

    @property
    def text_bits_per_byte(self) -> float:
        """Of text without its ends."""
        return bits_per_byte(self.nats - self.end_nats, self.num_bytes)


@dataclass(frozen=True)
class Following:
    """Ids with one more before them; as `Tokens`."""

    first: int
    tokens: Tokens

    def __len__(self) -> int:
        return 1 + len(self.tokens)

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]:
        begin, end, _ = part.indices(len(self))
        rest = self.tokens[max(0, begin - 1) : max(0, end - 1)]
        return np.concatenate(([self.first], rest)) if begin == 0 < end else rest


@dataclass(frozen=True)
class Part:
    """Some ids of a longer stream, read when they are asked for; as `Tokens`."""

    tokens: Tokens
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]:
        begin, end, _ = part.indices(len(self))
        return self.tokens[self.begin + begin : self.begin + end]


def rows_of(tokens: Tokens, *, context_length: int, stride: int) -> Iterator[Row]:
    """Yield the windows over `tokens`, in which all but the first of these are scored once."""
    for span in SlidingWindows(len(tokens), context_length, stride):
        yield Row(tokens[span.begin : span.end + 1].astype(np.int64), span.first_scored)


def file_documents(path: Path, info: TokenFileInfo, stream: TokenStream) -> Iterator[Tokens]:
    """Yield the documents of a token file, each with its end-of-text id; errors as of `document_begins`."""
    batches = (begins.tolist() for begins in document_begins(path, info, stream))
    bounds = chain(chain.from_iterable(batches), [len(stream)])
    for begin, end in pairwise(bounds):
        if begin >= end:
            raise DataError(
                f"{path}: its list of documents is not in order; make it again with transformerlm-make-data"
            )
        yield Part(stream, begin, end)


@final
class Tally:
    """Adds up what is found of windows."""

    def __init__(self, end_of_text_id: int | None, on_scored: OnScored | None) -> None:
        self._end_of_text_id = end_of_text_id
        self._on_scored = on_scored
        self.nats = self.end_nats = 0.0
        self.num_tokens = self.num_ends = self.num_windows = 0

    def add(self, row: Row, scored: Scored) -> None:
        """Add what the model held of a row's targets."""
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
        """Add an id of which nothing is known."""
        self.nats += math.log(vocab_size)
        self.num_tokens += 1

    def result(self, *, num_bytes: int, num_documents: int) -> HeldOut:
        """Return the sums, of texts of so many bytes."""
        return HeldOut(
            self.nats, self.end_nats, self.num_tokens, self.num_ends, num_bytes, num_documents, self.num_windows
        )
