"""What files say, in messages."""

import pytest

from transformerlm.utils.errors import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("gelu", "gelu"),
        ("größer", "größer"),
        ("", ""),
        ("a\x1b[31m\nb", r"'a\x1b[31m\nb'"),
        (0.1, "0.1"),
        ([1, "a"], "[1, 'a']"),
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 100 + "…"),
    ],
)
def test_a_value_is_shown_printable_and_short(value: object, text: str) -> None:
    assert shown(value) == text
