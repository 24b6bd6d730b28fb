r"""Write `unicode_ranges.py`: which characters the `regex` package takes for letters, numbers, white space and marks.

    python -m transformerlm.tokenizer.kernels.generate_unicode_ranges

Each version of Unicode adds letters and numbers. The ranges are written down once, so that a tokenizer cuts a text the
same way tomorrow, whatever packages are installed then. To move on to another version, install a `regex` of that
version, run this, and look at what changed: ranges that begin within 256 code points of one another share a line.
"""

import importlib.metadata
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import regex

TARGET = Path(__file__).with_name("unicode_ranges.py")

PATTERNS = {
    "LETTERS": r"\p{L}",
    "NUMBERS": r"\p{N}",
    "WHITE_SPACE": r"\s",
    "UPPER_CASE": r"[\p{Lu}\p{Lt}]",
    "LOWER_CASE": r"\p{Ll}",
    "CASELESS": r"[\p{Lm}\p{Lo}]",
    "MARKS": r"\p{M}",
}
"""The letters stand there twice: as one, and as those of upper or title case, of lower case, and of neither."""

# A letter that each version brought, to check the version that the package claims.
FIRST_IN = {
    "15.0": "\U00011f04",  # Kawi
    "15.1": "\U0002ebf0",  # CJK Unified Ideographs Extension I
    "16.0": "\U000105c0",  # Todhri
    "17.0": "\U00010940",  # Sidetic
    "18.0": "\U0003d000",  # Seal
}

HEADER = '''"""The letters, numbers, white space and marks of Unicode {version}: code points in hexadecimal, first-last.

Written by `python -m transformerlm.tokenizer.kernels.generate_unicode_ranges`; do not edit.
"""

UNICODE_VERSION = "{version}"
'''


def unicode_version() -> str:
    """Return the version of Unicode that the installed `regex` has, as its description says.

    Raises `ValueError` if it says nothing, or if the letters that it knows are those of another version.
    """
    description = importlib.metadata.distribution("regex").read_text("METADATA") or ""
    claim = re.search(r"supports Unicode (\d+\.\d+)", description)
    known = [version for version, letter in FIRST_IN.items() if regex.match(r"\p{L}", letter)]
    if claim is None or not known or known[-1] != claim[1]:
        claimed = claim[1] if claim else "nothing"
        raise ValueError(
            f"regex {regex.__version__} says that it has Unicode {claimed}, and knows letters of {', '.join(known)}; "
            "if the version is new, add a letter of it to FIRST_IN"
        )
    return claim[1]


def ranges_of(pattern: str) -> Iterator[tuple[int, int]]:
    """Yield the first and the last code point of each range of characters that match `pattern`."""
    every_character = "".join(map(chr, range(0x110000)))
    for match in regex.finditer(f"(?:{pattern})+", every_character):
        yield match.start(), match.end() - 1


def module_text() -> str:
    """Return the text of `unicode_ranges.py` for the installed `regex`."""
    parts = [HEADER.format(version=unicode_version())]
    for name, pattern in PATTERNS.items():
        lines = []
        for _, group in groupby(ranges_of(pattern), lambda ends: ends[0] // 256):
            words = (f"{first:x}-{last:x}" if first < last else f"{first:x}" for first, last in group)
            lines += textwrap.wrap(" ".join(words), width=120, break_on_hyphens=False)
        parts.append("\n".join([f'\n{name} = """', *lines, '"""\n']))
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(module_text(), encoding="utf-8", newline="")
