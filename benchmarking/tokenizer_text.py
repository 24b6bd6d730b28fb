r"""Large texts from small ones, for measuring tokenizers: the same for the same seed, with ever new words in them.

A tokenizer remembers the words it has met, and a trainer counts each distinct word once. Two megabytes repeated
fifty times would show either at its best: after the first two nothing is new. In text that people write, new
words never cease: n words hold about n^0.6 distinct ones (Heaps, "Information Retrieval", 1978), since the word of
rank r occurs as r^-1.6 (Zipf's law, with his exponent a little larger). So paragraphs are drawn at random, and some
of their words give way to rare ones, whose ranks are drawn from such a distribution:

    The old man looked at the harbour .        a paragraph of the source
            │                 │
    The old lobsbour looked at the 1903 .      rank 81,377: "lobster" and "harbour", halved; rank 16: a number

A rare word is glued from two words of its own source, so that every language and script makes its own. A long
word gives way more often than a short one: "the" stays, while of Chinese, which has no spaces and thus takes a whole
clause for a word, most clauses are new, as they are in real text.
"""

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from transformerlm.hparams import END_OF_TEXT

CHANGED_PER_LETTER = 0.02
"""A word of n letters gives way with n times this probability: about a tenth of running English words."""
RANK_TAIL = 0.6
"""The share of ranks above r falls as r^-0.6, so that rank r occurs as r^-1.6."""
RANK_SCALE = 12_000
"""Ranks below this are about equally frequent. It makes half a million distinct pre-tokens in 100 MB of English."""
MAX_RANK = 2.0**53  # beyond it floats, in which ranks are computed, leave out whole numbers
ONE_NUMBER_IN = 8  # rare words
LARGEST_NUMBER = 1_000_000
DOCUMENT_BYTES = 4000
"""About the length of a document. Documents are shuffled, so that the sources alternate."""
SURPLUS = 1.2
"""More is made than is wanted, since paragraphs that chance draws may be shorter than the average."""

_WORD = re.compile(r"([^\W_]+)")
_BLANK_LINE = re.compile(r"\n\s*\n|" + re.escape(END_OF_TEXT))
_CUT = re.compile(r"(?<=\S\n)(?=\S)")


def build_text(sources: Sequence[str], num_bytes: int, seed: int) -> str:
    """Return `num_bytes` of UTF-8, or a document more: documents from all `sources` in equal shares, shuffled.

    One newline ends each document. The text holds no `<|endoftext|>`, and nothing of sources without words.
    """
    rng = np.random.default_rng(seed)
    sources = [source for source in sources if _WORD.search(source)]
    documents: list[str] = []
    for source in sources:
        documents += _documents(source, round(SURPLUS * num_bytes / len(sources)), rng)
    text, length = [], 0
    for index in rng.permutation(len(documents)):
        if length >= num_bytes:
            break
        text.append(documents[index])
        length += len(documents[index].encode("utf-8"))
    return "".join(text)


def _documents(source: str, num_bytes: int, rng: np.random.Generator) -> list[str]:
    """Return documents of about `num_bytes` together: paragraphs of `source`, with some words replaced."""
    paragraphs = [paragraph.strip() for paragraph in _BLANK_LINE.split(source) if _WORD.search(paragraph)]
    mean_bytes = len("\n\n".join(paragraphs).encode("utf-8")) / len(paragraphs)
    parts = [_WORD.split(paragraph) for paragraph in paragraphs]  # words at the odd places
    picks = rng.integers(len(parts), size=round(num_bytes / mean_bytes) + 1)
    # The words of all picks, counted through: pick n has those from starts[n] to starts[n + 1].
    starts = np.concatenate([[0], np.cumsum(np.array([len(part) // 2 for part in parts])[picks])])
    letters = [np.array([len(word) for word in part[1::2]], np.float32) for part in parts]
    chances = CHANGED_PER_LETTER * np.concatenate([letters[pick] for pick in picks])
    changed = np.flatnonzero(rng.random(chances.size, dtype=np.float32) < chances)
    words = _rare_words(sorted({word for part in parts for word in part[1::2]}), changed.size, rng)
    bounds = np.searchsorted(changed, starts)
    places = (2 * (changed - np.repeat(starts[:-1], np.diff(bounds))) + 1).tolist()
    texts = []
    for pick, (first, last) in zip(picks.tolist(), pairwise(bounds.tolist()), strict=True):
        paragraph = parts[pick].copy()
        for place, word in zip(places[first:last], words[first:last], strict=True):
            paragraph[place] = word
        texts.append("".join(paragraph))
    size = max(1, round(DOCUMENT_BYTES / mean_bytes))
    return ["\n\n".join(texts[at : at + size]) + "\n" for at in range(0, len(texts), size)]


def _rare_words(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` draws from an endless vocabulary of rare words, glued from halves of `words`."""
    # A Pareto distribution of the second kind, by its inverse: the share above r is (1 + r / scale)^-tail.
    share_above = 1 - rng.random(count)
    ranks = np.minimum(RANK_SCALE * (share_above ** (-1 / RANK_TAIL) - 1), MAX_RANK).astype(np.int64)
    distinct, which = np.unique(ranks, return_inverse=True)
    fronts: list[int] = rng.integers(len(words), size=distinct.size).tolist()
    backs: list[int] = rng.integers(len(words), size=distinct.size).tolist()
    numbers = np.exp(rng.random(distinct.size) * np.log(LARGEST_NUMBER)).astype(np.int64).tolist()
    made = [
        str(number) if rank % ONE_NUMBER_IN == 0 else _glue(words[front], words[back])
        for rank, front, back, number in zip(distinct.tolist(), fronts, backs, numbers, strict=True)
    ]
    return [made[index] for index in which.tolist()]


def _glue(front: str, back: str) -> str:
    return front[: (len(front) + 1) // 2] + back[len(back) // 2 :]


def cut_text(text: str, num_chars: int) -> list[str]:
    r"""Cut `text` into pieces of at least `num_chars` characters, except the last, so that each has the same ids
    by itself as within the whole.

    Cuts are made at a single newline between two characters that are not white space: it is a pre-token by itself.
    """
    pieces, at = [], 0
    while at < len(text):
        cut = _CUT.search(text, at + num_chars)
        end = cut.start() if cut else len(text)
        pieces.append(text[at:end])
        at = end
    return pieces


def pathological_text(kind: str, num_bytes: int, seed: int) -> str:
    """Return `num_bytes` of UTF-8 that is one pre-token, so that merging alone decides how long it takes.

    `letter` is one letter again and again, `newlines` the same of newlines; `digits` and `letters` are drawn from the
    ASCII ones at random, and `cjk` from the first 3,000 unified ideographs (about what a newspaper uses), without
    spaces or punctuation.
    """
    rng = random.Random(seed)
    if kind == "letter":
        return "a" * num_bytes
    if kind == "newlines":
        return "\n" * num_bytes
    if kind == "digits":
        return "".join(rng.choices("0123456789", k=num_bytes))
    if kind == "letters":
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=num_bytes))
    assert kind == "cjk", kind
    ideographs = [chr(0x4E00 + number) for number in range(3000)]
    return "".join(rng.choices(ideographs, k=num_bytes // len("一".encode())))


def short_texts(text: str, num_chars: int, count: int, seed: int) -> list[str]:
    """Return `count` windows of `num_chars` characters from random places of `text`: calls that no cache foresees."""
    rng = random.Random(seed)
    places = (rng.randrange(len(text) - num_chars + 1) for _ in range(count))
    return [text[at : at + num_chars] for at in places]
