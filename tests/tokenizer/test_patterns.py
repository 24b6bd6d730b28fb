"""Every pattern of pre-tokenization gives the ids that `tokenizers` and tiktoken give, in either layer, however cut."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers
from tokenizers import pre_tokenizers as steps

from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.tokenizer import backend as layers
from transformerlm.tokenizer import tokenizer as tokenizer_module
from transformerlm.tokenizer.io import gpt2_bytes_to_unicode, read_merges
from transformerlm.tokenizer.pretokenize import PATTERNS, in_brackets, pretokenize
from transformerlm.tokenizer.streaming import safe_blocks
from transformerlm.tokenizer.unicode import ranges as unicode_ranges
from transformerlm.tokenizer.utf8 import to_text
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS_AND_WHITE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FRONT, BACK = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{FRONT}*{BACK}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{FRONT}+{BACK}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{FRONT}*{BACK}+|[^\r\n\p{{L}}\p{{N}}]?{FRONT}+{BACK}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "gpt2": GPT2,
    "llama3": rf"{WORDS}|\p{{N}}{{1,3}}|{SIGNS_AND_WHITE}",
    "qwen2": rf"{WORDS}|\p{{N}}|{SIGNS_AND_WHITE}",
    "cl100k": CL100K,
    "o200k": O200K,
    "tekken": TEKKEN,
}
NASTY = [
    *"  ''''''sStTlLvVeErRdDmM", *"aAbZ", "ſ", "é", "É", "ǅ", "ʰ", "你", "か", "\u0301", "\u0308", "\u3099", "\u0903",
    *"0123456789", "½", "٣", *"\r\n\r\n\t", " ", "  ", "\u00a0", "\u3000", "\u0085", "\u2001",
    *"/.!?_-", "\u037e", "\u212a", "…", "😀", "\u200d", "'s", "'LL", "\r\n", "don't", "HTTPServer", "<|", END_OF_TEXT,
]  # fmt: skip
nasty_texts = st.lists(st.sampled_from(NASTY), max_size=25).map("".join)
any_texts = (
    nasty_texts | st.text(max_size=30) | st.lists(st.sampled_from(NASTY) | st.characters(codec="utf-8")).map("".join)
)


class Pair(NamedTuple):
    """Our tokenizer, and that of `tokenizers` with the same tokens."""

    ours: Tokenizer
    theirs: tokenizers.Tokenizer
    pattern: str
    known: dict[str, list[int]]
    """Ids of texts by `theirs`."""


@pytest.fixture(params=["plain", "compiled"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = request.param == "compiled"
    monkeypatch.setattr(layers, "SHORT", -1 if compiled else 1 << 60)
    monkeypatch.setattr(layers, "TEXT", layers.Threshold(0, 0) if compiled else layers.Threshold(1 << 60, 1 << 60))


@pytest.fixture(scope="module", params=PATTERNS)
def pair(request: pytest.FixtureRequest, data: Path) -> Pair:
    """The first of GPT-2's merges with a pattern; the special token first, as in SmolLM; as Qwen2, normalized."""
    pattern = request.param
    merges = read_merges(data / "gpt2_merges.txt")[:6000]
    tokens = [END_OF_TEXT.encode(), *(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
    stand_ins = gpt2_bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(stand_ins[byte] for byte in token)

    vocab = {text(token): token_id for token_id, token in enumerate(tokens)}
    theirs = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[(text(left), text(right)) for left, right in merges]))
    theirs.pre_tokenizer = pre_tokenizer(pattern)
    theirs.decoder = decoders.ByteLevel()
    theirs.normalizer = normalizers.NFC() if pattern == "qwen2" else None
    theirs.add_special_tokens([END_OF_TEXT])
    normalization = "NFC" if pattern == "qwen2" else None
    ours = Tokenizer(dict(enumerate(tokens)), merges, [END_OF_TEXT], pattern=pattern, normalization=normalization)
    return Pair(ours, theirs, pattern, {})


def pre_tokenizer(pattern: str) -> steps.PreTokenizer:
    """Return what `tokenizers` runs for a pattern; for `cl100k`, in what its dialect means."""
    if pattern == "gpt2":
        return steps.ByteLevel(add_prefix_space=False)
    if pattern == "gpt2_digits":
        return steps.Sequence([steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)])
    expression = PUBLISHED[pattern].replace("{1,3}+", "{1,3}").replace("$", r"\z")
    byte_level = steps.ByteLevel(add_prefix_space=False, use_regex=False)
    return steps.Sequence([steps.Split(Regex(expression), "isolated"), byte_level])


@cache
def newer() -> regex.Pattern[str]:
    """The characters that `regex`, whose Unicode version is newer, classes in another way than the tables."""
    every_character = "".join(map(chr, range(0x110000)))
    groups = (("LETTERS", r"\p{L}"), ("UPPER_CASE", r"[\p{Lu}\p{Lt}]"), ("LOWER_CASE", r"\p{Ll}"))
    groups += (("NUMBERS", r"\p{N}"), ("MARKS", r"\p{M}"), ("WHITE_SPACE", r"\s"))
    characters: set[str] = set()
    for name, group in groups:
        ranges = getattr(unicode_ranges, name, None) or " ".join(
            (unicode_ranges.UPPER_CASE, unicode_ranges.LOWER_CASE, unicode_ranges.CASELESS)
        )
        ours = re.compile(f"[{in_brackets(ranges)}]").findall(every_character)
        characters |= set(ours) ^ set(regex.findall(group, every_character))
    return regex.compile("[" + "".join(map(regex.escape, sorted(characters))) + "]" if characters else "(?!)")


# Equal to others


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "udhr_multilingual.txt"])
def test_real_text_has_the_ids_of_tokenizers(pair: Pair, name: str, data: Path) -> None:
    text = (data / name).read_bytes().decode()
    if name not in pair.known:  # by the other layer
        pair.known[name] = pair.theirs.encode(text).ids
    ids = pair.ours.encode(text)
    assert ids == pair.known[name]
    assert pair.ours.decode(ids) == (unicodedata.normalize("NFC", text) if pair.pattern == "qwen2" else text)
    assert pair.ours.encode_to_array(text.encode(), num_threads=2).tolist() == ids


@pytest.mark.usefixtures("layer")
def test_any_unicode_has_the_ids_of_tokenizers(pair: Pair) -> None:
    @settings(max_examples=50)
    @given(any_texts)
    @example("a\n  ")  # cl100k and llama3 differ
    @example("\U00012652\u17bf")  # is no letter yet in the Unicode version of the tables
    @example("\U00012652\u08d3\u0316 a\u08d3\u0301 \U000105d2\u0307")
    @example("é\u0301 e\u0301\u0301 \u1100\u1161\u11a8 \u2001a<|endoftext|>\u0338")
    @example("́AB 你AB 你Ab AbC ʰA 'ſ x'Sx'LLy!\n/\r/ a")
    def check(text: str) -> None:
        ids = pair.theirs.encode(text).ids
        assert pair.ours.encode(text) == ids
        assert pair.ours.encode(text.encode()) == ids
        assert pair.ours.encode_to_array(text).tolist() == ids

    check()


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize("pattern", PUBLISHED)
def test_any_unicode_has_tiktokens_ids(pattern: str, gpt2: Tokenizer) -> None:
    ours = Tokenizer(gpt2.vocab, gpt2.merges, [END_OF_TEXT], pattern=pattern, whole_words=True)
    ranks = {token: token_id for token_id, token in gpt2.vocab.items() if token_id < 50256}
    theirs = tiktoken.Encoding(
        name=pattern, pat_str=PUBLISHED[pattern], mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )

    @settings(max_examples=50)
    @given(any_texts)
    @example("a\n  ")
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, allowed_special="all")
        assert ours.encode(text, allowed_special=set()) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text

    check()


@pytest.mark.parametrize("pattern", PUBLISHED)
@given(text=any_texts)
def test_pieces_are_those_of_the_published_expression(pattern: str, text: str) -> None:
    text = newer().sub("", text)
    expression = PUBLISHED[pattern].replace("$", r"\Z")  # which `regex` takes for the end of a line, too
    assert pretokenize(text, pattern) == regex.findall(expression, text)


@given(text=any_texts)
def test_digits_are_cut_out_first(text: str) -> None:
    text = newer().sub("", text)
    parts = regex.split(r"(\p{N})", text)
    pieces = [parts[at : at + 1] if at % 2 else regex.findall(GPT2, parts[at]) for at in range(len(parts))]
    assert pretokenize(text, "gpt2_digits") == [piece for part in pieces for piece in part]


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(TokenizerError, match="pattern is 'gpt5'; the patterns are gpt2, gpt2_digits, cl100k"):
        Tokenizer(BYTES, [], pattern="gpt5")


# However it is cut


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_division_of_a_text_has_its_ids(pattern: str, divide: Callable[[str, Sequence[int]], list[str]]) -> None:
    pieces = ["\r\n", "'s", "'S", "LL", "ll", "\n\n", "!\n", "AB", "Ab", "12", "  "]
    merges = [(bytes([word[0]]), bytes([word[1]])) for word in map(str.encode, pieces)]
    tokens = [*BYTES.values(), *(left + right for left, right in merges)]
    normalization = "NFC" if pattern in ("qwen2", "gpt2") else None
    special = [END_OF_TEXT, "a b", "e\u0301"]
    ours = Tokenizer(dict(enumerate(tokens)), merges, special, pattern=pattern, normalization=normalization)

    @settings(max_examples=50)
    @given(
        any_texts | st.text(alphabet="aA'sS1 \n\r./\u0301é你e", max_size=30),
        st.lists(st.integers(0, 99)),
        st.integers(1, 9),
    )
    def check(text: str, places: list[int], length: int) -> None:
        whole = ours.encode(text)
        data = text.encode()
        assert [
            token_id for block in safe_blocks([data], special, length, pattern) for token_id in ours.encode(block)
        ] == whole
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer_module, "ITERABLE_BLOCK", length)
            patch.setattr(tokenizer_module, "BLOCK", length)
            assert list(ours.encode_iterable(divide(text, places))) == whole
            assert ours.encode_to_array(text, num_threads=2).tolist() == whole
            assert ours.encode(text) == whole
        ends = np.array([len(data), 2 * len(data)])
        ids, id_ends = ours.encode_joined(data + data, ends)
        assert (ids.tolist(), id_ends.tolist()) == (whole + whole, [len(whole), 2 * len(whole)])

    check()


@pytest.mark.parametrize("pattern", PATTERNS)
@given(
    data=st.lists(st.sampled_from([*map(str.encode, NASTY), b"\xff", b"\xe4\xbd", b"\xc5"]), max_size=25).map(b"".join)
)
def test_blocks_of_bytes_have_the_pieces_of_the_whole(pattern: str, data: bytes) -> None:
    pieces = pretokenize(to_text(data), pattern)
    for length in (1, 3):
        blocks = safe_blocks([data], (), length, pattern)
        assert [piece for block in blocks for piece in pretokenize(to_text(block), pattern)] == pieces


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("unit", ["The cat's 12 hats.\n", "1a", "a.", "你好。", "नमस्ते ", "x(y) = 'z';\r\n"])
def test_blocks_stay_small(pattern: str, unit: str) -> None:
    assert max(map(len, safe_blocks([unit * 500], [], 100, pattern))) <= 200
    if unit.isascii():
        assert max(map(len, safe_blocks([unit.encode() * 500], [], 100, pattern))) <= 200


# Whole words and normalization


@pytest.mark.usefixtures("layer")
@pytest.mark.parametrize("length", [3, 15, 16, 80, 81, 200])
def test_a_pre_token_of_the_vocabulary_is_not_merged(length: int) -> None:
    """By no merge, and as `ignore_merges` of `tokenizers`; special tokens are no words."""
    word = ("xyz" * length)[:length].encode()
    vocab = BYTES | {256: b"xy", 257: word, 258: b"\xff\xfe", 259: b"zz"}
    merges = [(b"x", b"y")]
    ours = Tokenizer(vocab, merges, ["zz"], whole_words=True)
    text = word.decode() + " " + word.decode()
    for _ in range(2):
        assert ours.encode(text)[0] == 257
        assert ours.encode(text) == [257, 32, *Tokenizer(vocab, merges).encode(word)]
    assert Tokenizer(vocab, merges).encode(word) != [257]
    assert ours.encode("zz", allowed_special=set()) == [122, 122]
    assert ours.encode(b"\xff\xfe") == [258]
    assert ours.decode_bytes([258]) == b"\xff\xfe"


@pytest.mark.usefixtures("layer")
def test_special_tokens_are_cut_out_before_text_is_normalized() -> None:
    ours = Tokenizer(BYTES, [], ["<|a|>", "K!"], normalization="NFC")
    assert ours.encode("e\u0301<|a|>\u0338") == [*"é".encode(), 256, *"\u0338".encode()]
    assert ours.encode("\u212a!") == [*b"K!"], "what normalizing makes is no special token"
    assert ours.encode(b"\xffe\xcc\x81\xff") == [0xFF, *"é".encode(), 0xFF]
    assert [array.tolist() for array in ours.encode_batch(["e\u0301", "e"])] == [[*"é".encode()], [101]]
