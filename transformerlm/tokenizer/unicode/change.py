"""Which tokenizers may split text differently since the character classes changed to Unicode 16.0.

Earlier versions used Unicode 18.0 and recorded no version. The settings file now records it, and a tokenizer that
otherwise has no such file gets one if one of its tokens has a character that changed class. So a tokenizer without the
record is affected only if it has such a token: then its training text may now be split elsewhere.
"""

import re
from collections.abc import Iterable

from transformerlm.tokenizer.pretokenize import O200K, TEKKEN, in_brackets

_CHANGED = """
558 58b-58c 88f c5c cdc 208f 209d-209f a7ce-a7cf a7d2 a7d4 a7dd a7e2 a7f1 ab6c-ab6d 107bb-107bf 10940-10959 10ec5-10ec7
10ed9-10eee 11b0a 11db0-11ddb 11de0-11de9 11df1 1246f 12475-1247f 12550-12686 16ea0-16eb8 16ebb-16ed3 16ff2-16ff6
187f8-187ff 18cd6-18cda 18d09-18d20 18d80-18df2 18e00-19191 191a0-191d2 1b123-1b128 1b168 1d6a6 1df1f-1df24 1df2b-1df81
1df90-1df96 1dfcd-1dfff 1e6c0-1e6de 1e6e0-1e6e2 1e6e4-1e6e5 1e6e7-1e6ed 1e6f0-1e6f4 1e6fe-1e6ff 2b73a-2b73f 2b81e
2cea2-2cead 323b0-33479 3d000-3fc3f
"""
"""Letters and numbers of Unicode 18.0 that are not assigned in 16.0."""

_CHANGED_FOR_CASED = """
295 5c8-5c9 b53-b54 1acf-1af0 10ecb-10ecf 10ef0-10efb 11b60-11b67 11df0 1d127-1d128 1d250-1d252 1d25b-1d25c 1d25f
1d280-1d281 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5
"""
"""Marks, and a letter whose case changed: only `o200k` and `tekken` distinguish these."""


def changed_character(tokens: Iterable[bytes], pattern: str) -> str | None:
    """Return a character of `tokens` that `pattern` treats differently under the two versions, or None."""
    changed = _CHANGED + (_CHANGED_FOR_CASED if pattern in (O200K, TEKKEN) else "")
    text = b" ".join(tokens).decode("utf-8", errors="ignore")
    found = re.search(f"[{in_brackets(changed)}]", text)
    return found and found[0]
