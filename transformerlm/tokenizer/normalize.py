"""Unicode's normalization form C: letters and their marks as one character where there is one.

The tables are those of the Python that runs (`unicodedata.unidata_version`). The form of a text never changes once
all its characters are in the standard, so that versions differ in characters that were new in one of them only.

Source: Unicode Standard Annex 15.
"""

import unicodedata

from transformerlm.tokenizer.utf8 import to_text


def normalized(text: str) -> str:
    """Return `text` in form C. Surrogates stay as they are."""
    return unicodedata.normalize("NFC", text)


def is_normalized(text: str | bytes) -> bool:
    """Return whether text, or the text in bytes that need not be UTF-8, is in form C; so is then each part of it."""
    if text.isascii():
        return True
    return unicodedata.is_normalized("NFC", text if isinstance(text, str) else to_text(text))
