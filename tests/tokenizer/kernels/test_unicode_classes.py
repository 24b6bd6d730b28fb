"""The pinned classes of characters are those of `regex`, of one named version of Unicode."""

import numpy as np
import pytest
import regex

from transformerlm.tokenizer.kernels import generate_unicode_ranges
from transformerlm.tokenizer.kernels.generate_unicode_ranges import module_text, unicode_version
from transformerlm.tokenizer.kernels.unicode_classes import LETTER, NUMBER, OTHER, WHITE, class_table
from transformerlm.tokenizer.kernels.unicode_ranges import UNICODE_VERSION


@pytest.fixture(scope="module")
def same_version() -> None:
    """Every comparison needs a `regex` of the pinned version, and should say so if it has another."""
    installed = unicode_version()
    assert installed == UNICODE_VERSION, (
        f"regex {regex.__version__} has Unicode {installed}, the kernels' table has {UNICODE_VERSION}: characters that "
        "are new in one of them are cut in two ways. Install the regex of the table's version, or write a new table "
        "with `python -m transformerlm.tokenizer.kernels.generate_unicode_ranges`"
    )


@pytest.mark.usefixtures("same_version")
@pytest.mark.parametrize(("character_class", "pattern"), [(LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (WHITE, r"\s")])
def test_every_code_point_has_the_class_that_regex_gives_it(character_class: np.uint8, pattern: str) -> None:
    found = regex.findall(pattern, "".join(map(chr, range(0x110000))))
    assert np.flatnonzero(class_table() == character_class).tolist() == [ord(character) for character in found]


@pytest.mark.usefixtures("same_version")
def test_the_ranges_are_what_the_generator_writes() -> None:
    assert generate_unicode_ranges.TARGET.read_text(encoding="utf-8") == module_text()


def test_the_table_is_a_read_only_byte_for_each_code_point() -> None:
    table = class_table()
    assert (table.dtype, table.shape, table.flags.writeable) == (np.uint8, (0x110000,), False)
    assert (table[0xD800:0xE000] == OTHER).all()


def test_a_regex_that_knows_more_letters_than_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate_unicode_ranges.FIRST_IN, "99.0", "a")
    with pytest.raises(ValueError, match=r"says that it has Unicode \d+\.\d, and knows letters of .*, 99\.0"):
        unicode_version()
