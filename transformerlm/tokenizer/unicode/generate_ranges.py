r"""Write `ranges.py`: the letters, numbers, white space and marks of `tokenizers`, and what its NFC knows.

    python -m transformerlm.tokenizer.unicode.generate_ranges

Each version of Unicode adds characters. The ranges are written down once, so that a tokenizer cuts a text the same way
tomorrow, whatever packages are installed then. They are read from the installed `tokenizers`, whose ids are to be
matched; a test checks that tiktoken's are the same.
"""

import textwrap
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from tokenizers import Regex
from tokenizers.normalizers import NFD
from tokenizers.pre_tokenizers import Split

TARGET = Path(__file__).with_name("ranges.py")

PATTERNS = {
    "NUMBERS": r"\p{N}",
    "WHITE_SPACE": r"\s",
    "UPPER_CASE": r"[\p{Lu}\p{Lt}]",
    "LOWER_CASE": r"\p{Ll}",
    "CASELESS": r"[\p{Lm}\p{Lo}]",
    "MARKS": r"\p{M}",
}

# A letter that each version added, by which the version is recognised.
FIRST_IN = {
    "15.0": "\U00011f04",  # Kawi
    "15.1": "\U0002ebf0",  # CJK Unified Ideographs Extension I
    "16.0": "\U000105c0",  # Todhri
    "17.0": "\U00010940",  # Sidetic
    "18.0": "\U0003d000",  # Seal
}

HEADER = '''"""The letters, numbers, white space and marks of Unicode {version}: code points in hexadecimal, first-last.

These are the classes of tokenizers 0.23 and tiktoken 0.14. `NORMALIZED` has the characters that the NFC of tokenizers
reorders, composes or decomposes; its tables are those of Unicode 9.0.

Written by `python -m transformerlm.tokenizer.unicode.generate_ranges`; do not edit.
"""

UNICODE_VERSION = "{version}"
'''


def matching(pattern: str, text: str) -> set[str]:
    """Return the characters of `text` that match `pattern` in `tokenizers`."""
    runs = Split(Regex(f"(?:{pattern})+"), "removed", invert=True).pre_tokenize_str(text)
    return set("".join(run for run, _ in runs))


def unicode_version() -> str:
    """Return the newest version of `FIRST_IN` whose letter the installed `tokenizers` knows."""
    return [version for version, letter in FIRST_IN.items() if matching(r"\p{L}", letter)][-1]


def normalized_characters(characters: str) -> set[str]:
    """Return the characters that have a combining class or a decomposition, or are part of one, in `tokenizers`."""
    decomposed = NFD().normalize_str
    found: set[str] = set()
    for character in characters:
        if decomposed(character) != character:
            found |= {character, *decomposed(character)}
        # U+0334 has the lowest combining class and U+0345 the highest: every other mark changes places with one.
        elif any(decomposed(text) != text for text in (f"x{character}\u0334", f"x\u0345{character}")):
            found.add(character)
    return found


def ranges_of(characters: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last code point of each range of `characters`."""
    codes = sorted(map(ord, characters))
    for _, group in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        run = [code for _, code in group]
        yield run[0], run[-1]


def module_text() -> str:
    """Return the text of `ranges.py` for the installed `tokenizers`."""
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    classes = {name: matching(pattern, text) for name, pattern in PATTERNS.items()}
    classes["NORMALIZED"] = normalized_characters(text)
    parts = [HEADER.format(version=unicode_version())]
    for name, characters in classes.items():
        words = (f"{first:x}-{last:x}" if first < last else f"{first:x}" for first, last in ranges_of(characters))
        lines = textwrap.wrap(" ".join(words), width=120, break_on_hyphens=False)
        parts.append("\n".join([f'\n{name} = """', *lines, '"""\n']))
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(module_text(), encoding="utf-8", newline="")
