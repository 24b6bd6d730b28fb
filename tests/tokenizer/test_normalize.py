"""NFC is that of `tokenizers`, whatever Unicode version the running Python has."""

import random
import unicodedata

from tokenizers.normalizers import NFC

from transformerlm.tokenizer.normalize import is_normalized, normalized
from transformerlm.tokenizer.unicode.ranges import NORMALIZED

EVERY_CHARACTER = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def test_every_character_is_normalized_as_by_tokenizers() -> None:
    theirs = NFC().normalize_str
    assert [character for character in EVERY_CHARACTER if normalized(character) != theirs(character)] == []


def test_random_marks_and_letters_are_normalized_as_by_tokenizers() -> None:
    generator = random.Random(0)
    theirs = NFC().normalize_str
    marks = [character for character in EVERY_CHARACTER if unicodedata.combining(character)]
    decomposed = [character for character in EVERY_CHARACTER if unicodedata.decomposition(character)]
    newer = [*map(chr, (0x897, 0x8D3, 0x1ACC, 0x105C9, 0x105D2, 0x10D6D, 0x11938, 0x113C2, 0x113C9, 0x1E4EE))]
    groups = [marks, decomposed, newer, ["a", "e", "\u1100", "\u1161", "\u11a8", "\U000105d2\u0307"], EVERY_CHARACTER]
    for _ in range(100_000):
        text = "".join(generator.choice(generator.choice(groups)) for _ in range(generator.randint(2, 6)))
        assert normalized(text) == theirs(text), ascii(text)
        assert not is_normalized(text) or theirs(text) == text, ascii(text)


def test_characters_newer_than_the_table_stay_as_they_are() -> None:
    ranges = [ends.partition("-") for ends in NORMALIZED.split()]
    known = {code for first, _, last in ranges for code in range(int(first, 16), int(last or first, 16) + 1)}
    assert 0x301 in known and 0x8D3 not in known, "U+08D3 came with Unicode 11"
    assert normalized("a\u08d3\u0316\u0301") == "a\u08d3\u0316\u0301"
