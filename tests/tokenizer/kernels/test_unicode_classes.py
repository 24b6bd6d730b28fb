"""The pinned classes of characters are those of `tokenizers` and tiktoken."""

import numpy as np
import pytest
import tiktoken

from transformerlm.tokenizer.unicode import generate_ranges as generate_unicode_ranges
from transformerlm.tokenizer.unicode.classes import (
    CAPITAL,
    LETTER,
    MARK,
    NEITHER,
    NUMBER,
    OTHER,
    SMALL,
    WHITE,
    class_table,
    fine_class_table,
)
from transformerlm.tokenizer.unicode.generate_ranges import module_text, unicode_version
from transformerlm.tokenizer.unicode.ranges import UNICODE_VERSION

EVERY_CHARACTER = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
CLASSES = {r"\p{L}": LETTER, r"\p{N}": NUMBER, r"\s": WHITE}
BITS = {r"[\p{Lu}\p{Lt}]": CAPITAL, r"\p{Ll}": SMALL, r"[\p{Lm}\p{Lo}]": NEITHER, r"\p{M}": MARK}


@pytest.mark.parametrize("pattern", [*CLASSES, *BITS])
def test_every_code_point_has_the_class_that_tiktoken_gives_it(pattern: str) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    theirs = tiktoken.Encoding(name="class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    found = sorted(map(ord, theirs.decode(theirs.encode_ordinary(EVERY_CHARACTER))))
    is_ours = class_table() == CLASSES[pattern] if pattern in CLASSES else fine_class_table() & BITS[pattern] != 0
    assert np.flatnonzero(is_ours).tolist() == found


def test_the_ranges_are_what_the_generator_reads_from_tokenizers() -> None:
    assert unicode_version() == UNICODE_VERSION == "16.0"
    assert generate_unicode_ranges.TARGET.read_text(encoding="utf-8") == module_text()


def test_the_table_is_a_read_only_byte_for_each_code_point() -> None:
    table = class_table()
    assert (table.dtype, table.shape, table.flags.writeable) == (np.uint8, (0x110000,), False)
    assert (table[0xD800:0xE000] == OTHER).all()
