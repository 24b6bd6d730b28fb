"""The hash of a text: the same however it is worked out, spread evenly, different for different texts."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from databuilder import text_hash
from databuilder.text_hash import TextHash, hash_texts
from transformerlm.tokenizer.kernels import jit as compiling

TEXTS = st.lists(st.text(min_size=1).map(lambda text: text * 7), min_size=1, max_size=8)


def ends_of(texts: list[bytes]) -> Any:
    return np.cumsum([len(text) for text in texts], dtype=np.int64)


@given(texts=TEXTS)
@example(texts=["x" * length for length in range(1, 40)])
def test_kernel_and_plain_python_give_the_hash_of_each_text(texts: list[str], oracle: Any) -> None:
    encoded = [text.encode("utf-8") for text in texts]
    expected = [oracle.text_hash(text) for text in texts]
    for compiled in (False, True) if compiling.available() else (False,):
        assert hash_texts(b"".join(encoded), ends_of(encoded), compiled=compiled).tolist() == expected


@given(cuts=st.lists(st.integers(0, 1000), max_size=6), words=st.integers(1, 9))
def test_a_text_in_parts_has_the_hash_of_the_whole(cuts: list[int], words: int, oracle: Any) -> None:
    text = "".join(f"word {number} " for number in range(200))[:1003]
    bounds = [0, *sorted(cuts), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_hash, "_WORDS_PER_BLOCK", words)
        hashed = TextHash()
        for begin, end in pairwise(bounds):
            hashed.update(text[begin:end].encode("utf-8"))
        assert hashed.value().tolist() == [oracle.text_hash(text)]
        data = text.encode("utf-8")
        assert hash_texts(data, ends_of([data]), compiled=False).tolist() == [oracle.text_hash(text)]


def test_hashes_of_texts_that_are_much_alike_are_evenly_spread() -> None:
    texts = [f"{number}".encode() for number in range(20_000)]
    texts += [b"a" * length for length in range(1, 2000)] + [b"\0" * length for length in range(1, 2000)]
    texts += [b"".join(b"word %03d" % (place ^ swap) for place in range(64)) for swap in range(1, 64)]
    hashes = hash_texts(b"".join(texts), ends_of(texts), compiled=False)
    assert len(np.unique(hashes)) == len(texts)
    for bit in range(64):
        share = np.count_nonzero(hashes >> np.uint64(bit) & np.uint64(1)) / len(hashes)
        assert share == pytest.approx(0.5, abs=0.02)
