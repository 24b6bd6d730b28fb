"""UTF-8 validation, and the policies for text that is not valid."""

import codecs

from databuilder.pieces import ErrorPolicy, TextCounts
from transformerlm.utils.errors import DataError


class Utf8:
    """Checks the text of one source according to an error policy."""

    def __init__(self, name: str, errors: ErrorPolicy, counts: TextCounts) -> None:
        self._name = name
        self._errors = errors
        self._counts = counts

    def check(
        self, data: bytes, place: int, *, final: bool = True, where: str = "at byte {}"
    ) -> tuple[bytes | None, int]:
        """Return `data` as valid UTF-8, or None to leave its document out, and the number of bytes of `data` used.

        All bytes are used, except an incomplete last character if more data may follow (not `final`). `place` is the
        offset of the data in the source. Under the policy "strict", raises `DataError` with the offset of the error.
        """
        try:
            _, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if self._errors == "strict":
                raise not_utf8(self._name, where.format(place + error.start), error.reason) from error
            if self._errors == "skip":
                return None, len(data)
            text, used = codecs.utf_8_decode(data, "replace", final)
            self._counts.characters_replaced += text.count("\ufffd") - data[:used].count("\ufffd".encode())
            return text.encode("utf-8"), used
        return data[:used], used


def not_utf8(name: str, where: str, reason: str) -> DataError:
    """Return an error that says where text is not UTF-8, and what to do."""
    return DataError(f"{name}: not UTF-8 {where} ({reason}); convert it, or set input.errors to replace or skip")


def is_valid(data: bytes) -> bool:
    """Return whether `data` is UTF-8."""
    if data.isascii():  # ten times as fast as decoding
        return True
    try:
        codecs.utf_8_decode(data, "strict", True)
    except UnicodeDecodeError:
        return False
    return True
