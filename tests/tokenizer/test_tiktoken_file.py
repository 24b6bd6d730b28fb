"""Merges from ranks and from lists that name a token's making twice, and tiktoken's files."""

import base64
import random
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import models

from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.tokenizer.bpe import merge_table
from transformerlm.tokenizer.tiktoken_file import live_merges, merges_of_ranks
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}
SINGLE = {token: byte for byte, token in BYTES.items()}


def random_merges(seed: int, count: int = 25) -> list[tuple[bytes, bytes]]:
    """Merges over three letters, each of two tokens that are there, no token twice."""
    choose = random.Random(seed)
    tokens, merges = [b"a", b"b", b"c"], []
    while len(merges) < count:
        pair = choose.choice(tokens), choose.choice(tokens)
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return merges


@given(seed=st.integers(0, 10**6), text=st.text("abc", max_size=40))
def test_ranks_make_what_tiktoken_makes(seed: int, text: str) -> None:
    """Any ranks, also such as no training makes: tokens before their parts, tokens that are never made."""
    tokens = [left + right for left, right in random_merges(seed)]
    random.Random(seed).shuffle(tokens)
    ranks = SINGLE | {token: 256 + number for number, token in enumerate(tokens)}
    theirs = tiktoken.Encoding(name="x", pat_str=r"[abc]+", mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer({rank: token for token, rank in ranks.items()}, merges_of_ranks(ranks), whole_words=True)
    assert ours.encode(text) == theirs.encode(text)


@given(seed=st.integers(0, 10**6), text=st.text("abc", max_size=40), as_converted=st.booleans())
def test_several_ways_to_a_token_make_what_tokenizers_makes(seed: int, text: str, as_converted: bool) -> None:
    """Every way to split a token into two is there, in any order, or in that of files converted from ranks."""
    tokens = {b"a", b"b", b"c", *(left + right for left, right in random_merges(seed))}
    ways = [
        (token[:at], token[at:])
        for token in sorted(tokens, key=lambda token: (len(token), token))
        for at in range(1, len(token))
        if token[:at] in tokens and token[at:] in tokens
    ]
    if not as_converted:
        random.Random(seed).shuffle(ways)
    vocab = {token.decode(): number for number, token in enumerate(sorted(tokens))}
    theirs = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[(a.decode(), b.decode()) for a, b in ways]))
    ours = Tokenizer(dict(enumerate(sorted(tokens))), ways)
    assert ours.encode(text) == theirs.encode(text).ids


def test_of_many_ways_to_a_token_one_is_live() -> None:
    id_of = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    table = merge_table([(b"a", b"bc"), (b"ab", b"c"), (b"b", b"c"), (b"a", b"b")], id_of)
    assert live_merges(id_of, table) == [(b"a", b"bc"), (b"b", b"c"), (b"a", b"b")]


def test_gpt2s_merges_are_recovered_and_its_file_is_tiktokens(gpt2: Tokenizer, tmp_path: Path, data: Path) -> None:
    path = tmp_path / "gpt2.tiktoken"
    gpt2.to_tiktoken(path)
    ours = Tokenizer.from_tiktoken(path, special_tokens={END_OF_TEXT: 50256})
    assert (ours.vocab, ours.merges, ours.eos_token_id) == (gpt2.vocab, gpt2.merges, 50256)
    assert load_tiktoken_bpe(str(path)) == {
        token: token_id for token_id, token in gpt2.vocab.items() if token_id < 50256
    }
    text = (data / "udhr_multilingual.txt").read_bytes().decode()[:50_000]
    assert ours.encode(text) == gpt2.encode(text)


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()))
    return path


def test_ids_between_special_tokens_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tiktoken", SINGLE | {b"ab": 256})
    ours = Tokenizer.from_tiktoken(
        path, pattern="cl100k", special_tokens={END_OF_TEXT: 258, "<|x|>": 260}, beginning_of_text="<|x|>"
    )
    assert ours.special_tokens == {END_OF_TEXT: 258, "<|x|>": 260}
    assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_id) == (261, 260, 258)
    assert ours.encode("ab") == [256]
    with pytest.raises(TokenizerError, match="257 is the id of no token"):
        ours.decode([256, 257])
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").sha256() == ours.sha256()
    ours.to_tiktoken(tmp_path / "again.tiktoken")
    assert (tmp_path / "again.tiktoken").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("cl100k_base.tiktoken", None, "cl100k"),
        ("o200k_base.tiktoken", None, "o200k"),
        ("r50k_base.tiktoken", None, "gpt2"),
        ("cl100k_base.tiktoken", "llama3", "llama3"),
    ],
)
def test_the_pattern_is_that_of_the_files_name(name: str, pattern: str | None, expected: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_tiktoken(write(tmp_path / name, SINGLE), pattern=pattern)
    assert ours.settings.pattern == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YWI= 256", r"256 of the 256 single bytes are missing"),
        (b"YWI= 256\nYWI= 257", r"line 2\): token or rank is there a second time"),
        (b"YWI= 256\nYWM= 256", r"line 2\): token or rank"),
        (b"YWI=256", r"line 1\): b'YWI=256' is not a token in base64"),
        (b"Y*I= 256", "is not a token in base64"),
        (b" 256", "is not a token in base64"),
        (b"YWI= -1", "is not a token in base64"),
        (b"YWI= 99999999", "is not a token in base64"),
        (b"YWI= " + b"9" * 5000, "is not a token in base64"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", pattern="gpt2")
    with pytest.raises(TokenizerError, match=r"nowhere\.tiktoken: cannot be read"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere.tiktoken", pattern="gpt2")


def test_ranks_and_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b", SINGLE)
    for token_id, message in ((97, "has the id of b'a'"), (-1, "has the id -1"), (1 << 40, "give one below 2,097,152")):
        with pytest.raises(TokenizerError, match=message):
            Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens={"<x>": token_id})


def test_a_token_may_have_a_lower_rank_than_its_parts(tmp_path: Path) -> None:
    """As in Llama 3's file."""
    ranks = SINGLE | {b"abc": 256, b"ab": 257}
    ours = Tokenizer.from_tiktoken(write(tmp_path / "a", ranks), pattern="gpt2")
    theirs = tiktoken.Encoding(name="x", pat_str=r"[abc]+", mergeable_ranks=ranks, special_tokens={})
    for text in ("abc", "abcab", "abca", "aabcb"):
        assert ours.encode(text) == theirs.encode(text)
    ours.to_tiktoken(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "a").read_bytes()


def test_what_tiktoken_would_do_otherwise_is_not_written(tmp_path: Path) -> None:
    vocab = BYTES | {256: b"bc", 257: b"ab"}
    with pytest.raises(TokenizerError, match="takes ids for the ranks of merges"):
        Tokenizer(vocab, [(b"a", b"b"), (b"b", b"c")]).to_tiktoken(tmp_path / "x")
    with pytest.raises(TokenizerError, match="would use b'xyz', which no merge makes"):
        Tokenizer(BYTES | {256: b"xyz"}, []).to_tiktoken(tmp_path / "x")
    with pytest.raises(TokenizerError, match="needs a token for each single byte"):
        Tokenizer({0: b"a"}, []).to_tiktoken(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
