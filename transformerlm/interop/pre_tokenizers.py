r"""Convert between patterns of pre-tokenization and the pre-tokenizer objects of `tokenizer.json`.

Most objects contain a regular expression in Oniguruma's dialect. Only the expressions below are recognised, since
similar expressions may split text differently. Tiktoken's expression for `cl100k` has another meaning in Oniguruma,
where `{1,3}+` is a repetition.
"""

from typing import Any

from transformerlm.tokenizer.pretokenize import CL100K, GPT2, GPT2_DIGITS, LLAMA3, O200K, QWEN2, TEKKEN
from transformerlm.utils.errors import InteropError, shown

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WHITE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_FRONT, _BACK = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

_FRONT_AND_BACK = rf"[^\r\n\p{{L}}\p{{N}}]?[{_FRONT}]*[{_BACK}]+"
_FRONT_ALONE = rf"[^\r\n\p{{L}}\p{{N}}]?[{_FRONT}]+[{_BACK}]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

WRITTEN = {
    LLAMA3: rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_WHITE}",
    QWEN2: rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_WHITE}",
    CL100K: rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|\s+\z|{_WHITE}",
    O200K: rf"{_FRONT_AND_BACK}{_CONTRACTIONS}?|{_FRONT_ALONE}{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_WHITE}",
    TEKKEN: rf"{_FRONT_AND_BACK}|{_FRONT_ALONE}|\p{{N}}|{_SIGNS_AND_SLASHES}|{_WHITE}",
}
"""The expression written for each pattern."""

_GPT2_FORMS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
)
_PATTERN_OF = {expression: pattern for pattern, expression in WRITTEN.items()} | dict.fromkeys(_GPT2_FORMS, GPT2)


def pre_tokenizer_of(pattern: str) -> dict[str, Any]:
    """Return the "pre_tokenizer" object of `tokenizer.json` for a pattern."""
    if pattern == GPT2:
        return _byte_level(use_regex=True)
    if pattern == GPT2_DIGITS:
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    else:
        first = {"type": "Split", "pattern": {"Regex": WRITTEN[pattern]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex=pattern == GPT2_DIGITS)]}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def pattern_of(pre_tokenizer: Any) -> str:
    """Return the pattern of a "pre_tokenizer" object; raise `InteropError`, without the file's name, if unknown."""
    steps = _steps(pre_tokenizer)
    last = steps[-1]
    kinds = [str(step.get("type")) for step in steps]
    if "ByteLevel" not in kinds:
        raise InteropError(_not_byte_level(last.get("type")))
    if last.get("type") != "ByteLevel":
        raise InteropError(
            f"its pre-tokenizer, {shown(' and '.join(kinds))}, splits further after ByteLevel, which is not supported"
        )
    if last.get("add_prefix_space", True) is not False:
        raise InteropError("its pre-tokenizer adds a space before texts (add_prefix_space), which is not supported")
    use_regex = last.get("use_regex", True)
    first = steps[0]
    if len(steps) == 1 and use_regex is True:
        return GPT2
    if (
        len(steps) == 2
        and first.get("type") == "Digits"
        and first.get("individual_digits") is True
        and use_regex is True
    ):
        return GPT2_DIGITS
    if len(steps) == 2 and first.get("type") == "Split" and use_regex is False:
        return _pattern_of_split(first)
    steps_shown = shown(" and ".join(kinds))
    raise InteropError(f"its pre-tokenizer, {steps_shown} with use_regex {shown(use_regex)}, is not supported")


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer, with nested sequences flattened in order."""
    if not isinstance(pre_tokenizer, dict):
        raise InteropError(_not_byte_level(None))
    found: list[dict[str, Any]] = []
    waiting: list[Any] = [pre_tokenizer]
    while waiting:
        step = waiting.pop(0)
        inner = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else []
        if not isinstance(step, dict) or not isinstance(inner, list):
            raise InteropError("its pre-tokenizer is not a sequence of objects; download the file again")
        waiting[:0] = inner
        if step.get("type") != "Sequence":
            found.append(step)
    if not found:
        raise InteropError(_not_byte_level(None))
    return found


def _pattern_of_split(split: dict[str, Any]) -> str:
    expression = split.get("pattern")
    expression = expression.get("Regex") if isinstance(expression, dict) else None
    # Every pattern here matches the whole text, so it makes no difference whether matches or gaps become pre-tokens.
    keeps_all = split.get("behavior") == "Isolated" or (split.get("behavior"), split.get("invert")) == ("Removed", True)
    if keeps_all and isinstance(expression, str) and expression in _PATTERN_OF:
        return _PATTERN_OF[expression]
    raise InteropError(
        f"its pre-tokenization pattern is not supported: {str(expression)[:200]!r} ({split.get('behavior')})"
    )


def _not_byte_level(kind: Any) -> str:
    spoken = "absent" if kind is None else "SentencePiece's, Metaspace" if kind == "Metaspace" else str(kind)[:100]
    return f"its pre-tokenizer is {spoken}; only byte-level BPE such as GPT-2's, Llama 3's, Qwen's and o200k's is read"
