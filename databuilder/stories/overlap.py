"""How much of one text is a copy of another: the share of word n-grams that occur in both."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b


def ngram_overlap(train_texts: Iterable[str], valid_texts: Iterable[str], n: int = 10) -> float:
    """Return the share of the validation texts' word n-grams that occur anywhere in the training texts.

    Words are what `str.split` gives, positions are counted (an n-gram that occurs twice counts twice), and no n-gram
    crosses the border of a text. Texts of fewer than `n` words have none; without any the share is 0. What is kept of
    the training texts is one 8-byte hash for each distinct n-gram.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word (got n = {n})")
    seen = {code for text in train_texts for code in _ngram_hashes(text, n)}
    found = total = 0
    for text in valid_texts:
        for code in _ngram_hashes(text, n):
            total += 1
            found += code in seen
    return found / total if total else 0.0


def _ngram_hashes(text: str, n: int) -> Iterator[int]:
    """Yield a 64-bit hash of each run of `n` words."""
    words = text.split()
    for start in range(len(words) - n + 1):
        gram = " ".join(words[start : start + n]).encode()
        yield int.from_bytes(blake2b(gram, digest_size=8).digest(), "little")
