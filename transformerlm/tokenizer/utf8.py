"""Conversion between text and bytes when either may be invalid."""


def to_text(data: bytes) -> str:
    """Return `data` as text in which a byte that is not UTF-8 is a surrogate, U+DC80 to U+DCFF; see PEP 383.

    To the pre-token pattern, a surrogate is a character that is not a letter, a number or white space.
    """
    return data.decode("utf-8", errors="surrogateescape")


def to_bytes(text: str) -> bytes:
    """Return the bytes from which `to_text` made `text`."""
    return text.encode("utf-8", errors="surrogateescape")


def valid_unicode(text: str) -> str:
    """Return `text` without surrogates: a pair becomes its character, a lone one U+FFFD, as in tiktoken.

    Python strings may hold surrogates, UTF-8 may not.
    """
    if text.isascii():  # O(1): Python strings store whether they are ASCII
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
