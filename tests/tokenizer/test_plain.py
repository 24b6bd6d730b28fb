"""The plain encoder, the oracle of the compiled one: what it remembers."""

import pytest

from transformerlm.tokenizer import plain
from transformerlm.tokenizer.backend import Specials
from transformerlm.tokenizer.plain import PlainEncoder
from transformerlm.tokenizer.validation import TokenIds

BYTES = {bytes([byte]): byte for byte in range(256)}


def test_the_memory_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_REMEMBERED", 10)
    encoder = PlainEncoder(TokenIds(BYTES), [])
    text = " ".join(map(str, range(100))) + " " + "x" * 200
    assert encoder.encode(text, Specials({})) == list(text.encode())
    assert len(encoder._ids_of) <= 10
    assert " " + "x" * 200 not in encoder._ids_of
