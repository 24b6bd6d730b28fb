"""What a vocabulary given in memory must be."""

import pytest

from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (BYTES | {256: b"a"}, [], r"vocab: ids 97 and 256 are both b'a'"),
        (BYTES | {257: b"ab"}, [], r"vocab: the ids have a gap: 256 is missing"),
        ({byte + 1: token for byte, token in BYTES.items()}, [], "0 is missing"),
        (BYTES | {"256": b"ab"}, [], "vocab: '256': b'ab' is not an id and its bytes"),
        (BYTES | {256: "ab"}, [], "vocab: 256: 'ab' is not an id and its bytes"),
        (
            {byte: bytes([byte]) for byte in range(200)},
            [],
            r"56 of the 256 single bytes are missing.*b'\\xc8'",
        ),
        (BYTES | {256: b"ab"}, [(b"a", b"b"), (b"a", b"b")], r"merges\[1\]: .* a second time"),
        (BYTES | {256: b"abc"}, [(b"ab", b"c")], r"merges\[0\]: .* uses b'ab', which is no byte"),
        (BYTES, [(b"a", b"b")], r"merges\[0\]: .* makes b'ab', which the vocabulary lacks"),
    ],
)
def test_what_is_wrong_is_said(vocab: dict, merges: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(vocab, merges)


def test_an_empty_vocabulary_lacks_all_bytes() -> None:
    with pytest.raises(TokenizerError, match="256 of the 256"):
        Tokenizer({}, [])
