"""What a vocabulary given in memory must be."""

import pytest

from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (BYTES | {256: b"a"}, [], r"vocab: ids 97 and 256 are both b'a'"),
        (BYTES | {-1: b"ab"}, [], "vocab: b'ab' has the id -1; give one from 0 to 2,097,151"),
        (BYTES | {1 << 21: b"ab"}, [], "vocab: b'ab' has the id 2097152"),
        (BYTES | {"256": b"ab"}, [], "vocab: '256': b'ab' is not an id and its bytes"),
        (BYTES | {256: "ab"}, [], "vocab: 256: 'ab' is not an id and its bytes"),
        (BYTES | {256: b"abc"}, [(b"ab", b"c")], r"merges\[0\]: .* needs b'ab', which the vocabulary lacks"),
        (BYTES, [(b"", b"b")], r"merges\[0\]: .* joins nothing"),
        ({98: b"b", 256: b"ab"}, [(b"a", b"b")], r"merges\[0\]: .* needs b'a', which the vocabulary lacks"),
        (BYTES, [(b"a", b"b")], r"merges\[0\]: .* needs b'ab', which the vocabulary lacks"),
    ],
)
def test_what_is_wrong_is_said(vocab: dict, merges: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(vocab, merges)


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match="has no tokens"):
        Tokenizer({}, [])
