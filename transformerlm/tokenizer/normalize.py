"""Unicode's normalization form C (NFC): a letter and its marks become one character if Unicode has it.

Only the characters in `unicode.ranges.NORMALIZED` are normalized: the same as in `tokenizers`, whose NFC tables are
from Unicode 9.0. The NFC of a text never changes once all its characters are in the standard, so the result does not
depend on the Unicode version of the running Python.

Source: Unicode Standard Annex 15.
"""

import re
import unicodedata
from functools import cache

from transformerlm.tokenizer.pretokenize import in_brackets
from transformerlm.tokenizer.unicode.ranges import NORMALIZED
from transformerlm.tokenizer.utf8 import to_text


def normalized(text: str) -> str:
    """Return `text` in NFC. Surrogates and characters newer than Unicode 9.0 stay as they are."""
    return _known().sub(lambda run: unicodedata.normalize("NFC", run[0]), text)


@cache
def _known() -> re.Pattern[str]:
    return re.compile(f"[{in_brackets(NORMALIZED)}]+")


def is_inert(text: str) -> bool:
    """Return whether NFC neither changes nor produces any character of `text`, in any context."""
    return _known().search(text) is None


def is_normalized(text: str | bytes) -> bool:
    """Return whether text (or bytes, which need not be UTF-8) is certainly in NFC, and so each part of it.

    A text with characters newer than Unicode 9.0 may be in NFC and get False.
    """
    if text.isascii():
        return True
    return unicodedata.is_normalized("NFC", text if isinstance(text, str) else to_text(text))
