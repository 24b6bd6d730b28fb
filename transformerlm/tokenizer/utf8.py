"""Text and bytes, when one of them is not quite valid."""


def to_text(data: bytes) -> str:
    """Return `data` as text in which a byte that is not UTF-8 is a surrogate, U+DC80 to U+DCFF; see PEP 383.

    To the pre-token pattern, a surrogate is a character that is no letter, no number and no white space.
    """
    return data.decode("utf-8", errors="surrogateescape")


def to_bytes(text: str) -> bytes:
    """Return the bytes of which `to_text` made `text`."""
    return text.encode("utf-8", errors="surrogateescape")


def valid_unicode(text: str) -> str:
    """Return `text` without surrogates: a pair becomes its character, a lone one U+FFFD, as in tiktoken.

    Python strings may hold surrogates, UTF-8 may not.
    """
    if text.isascii():  # known without looking: ASCII strings are stored in a form of their own
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
