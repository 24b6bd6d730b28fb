"""The tokenizer: equal to tiktoken, indifferent to how text is divided, its own inverse."""

import gzip
import pickle
import random
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from transformerlm.tokenizer import END_OF_TEXT, StreamingDecoder, Tokenizer, train_bpe
from transformerlm.tokenizer import backend as layers
from transformerlm.tokenizer import tokenizer as tokenizer_module
from transformerlm.utils.errors import DataError, TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}
NASTY = ["<|eot|>", "<|eo", "t|>", "a b", "a", " ", "  ", "\n", "'", "'ll", "ll", " the", "é", "你", "1", "<"]
nasty_texts = st.lists(st.sampled_from(NASTY), max_size=30).map("".join)


@pytest.fixture(params=["plain", "compiled"], autouse=True)
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with either layer."""
    compiled = request.param == "compiled"
    monkeypatch.setattr(layers, "SHORT", -1 if compiled else 1 << 60)
    monkeypatch.setattr(layers, "TEXT", layers.Threshold(0, 0) if compiled else layers.Threshold(1 << 60, 1 << 60))


# tiktoken equality


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "udhr_multilingual.txt"])
def test_real_text_has_tiktokens_ids(name: str, data: Path, gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    check_tiktokens_ids((data / name).read_bytes().decode(), gpt2, oracle)


def test_a_whole_corpus_has_tiktokens_ids(whole_corpus: bytes, gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    check_tiktokens_ids(whole_corpus.decode(), gpt2, oracle)


def check_tiktokens_ids(text: str, gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    ids = gpt2.encode(text)
    assert ids == oracle.encode(text, allowed_special="all")
    assert gpt2.decode(ids) == text


def test_any_unicode_has_tiktokens_ids(gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    @given(st.text(max_size=60) | st.text(alphabet="a'slLvetrd1 \n\t\u00a0\u3000.!é你\U0001f600", max_size=60))
    @example(END_OF_TEXT + " x" + END_OF_TEXT)
    def check(text: str) -> None:
        assert gpt2.encode(text) == oracle.encode(text, allowed_special="all")
        assert gpt2.encode(text, allowed_special=set()) == oracle.encode(text, disallowed_special=())

    check()


@given(text=st.text(alphabet=st.sampled_from("a \ud83d\ude00\ud800\udfff😀"), max_size=10))
def test_surrogates_have_tiktokens_ids(gpt2: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    assert gpt2.encode(text) == oracle.encode(text)
    assert list(gpt2.encode_iterable(text)) == oracle.encode(text)


def test_a_long_word_has_tiktokens_ids(gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    text = "".join(random.Random(0).choices("aehilnorst", k=50_000))
    assert gpt2.encode(text) == oracle.encode(text)


@pytest.mark.slow
def test_a_megabyte_of_one_letter_is_encoded(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("a" * 1_000_000)
    assert gpt2.decode(ids) == "a" * 1_000_000
    assert list(gpt2.encode_iterable("a" * 1_000_000)) == ids


def test_a_trained_vocabulary_has_tiktokens_ids(data: Path, tmp_path: Path) -> None:
    text = (data / "udhr_multilingual.txt").read_bytes().decode()[:60_000]
    (tmp_path / "corpus.txt").write_bytes(text.encode())
    vocab, merges = train_bpe(tmp_path / "corpus.txt", 1000, [END_OF_TEXT])
    tokenizer = Tokenizer(vocab, merges, [END_OF_TEXT])
    ranks = {token: token_id for token_id, token in vocab.items() if token_id < 999}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    trained = tiktoken.Encoding(
        name="trained", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 999}
    )
    assert tokenizer.encode(text) == trained.encode(text, allowed_special="all")
    assert tokenizer.eos_token_id == 999


# Laws


@given(text=st.text(), merged=nasty_texts)
def test_decoding_undoes_encoding(toy: Tokenizer, gpt2: Tokenizer, text: str, merged: str) -> None:
    for tokenizer in (toy, gpt2):
        assert tokenizer.decode(tokenizer.encode(text + merged)) == text + merged
        assert tokenizer.decode(tokenizer.encode(text + merged, allowed_special=set())) == text + merged


@given(
    text=nasty_texts,
    places=st.lists(st.integers(0, 10**6)),
    block_chars=st.integers(1, 9),
    allowed=st.sampled_from(["all", frozenset(), frozenset({"<|eot|>"}), frozenset({"a b", "<|eot|><|eot|>"})]),
)
def test_any_division_of_a_text_has_its_ids(
    toy: Tokenizer,
    divide: Callable[[str, Sequence[int]], list[str]],
    text: str,
    places: list[int],
    block_chars: int,
    allowed: frozenset[str],
) -> None:
    whole = toy.encode(text, allowed_special=allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "ITERABLE_BLOCK", block_chars)
        assert list(toy.encode_iterable(divide(text, places), allowed_special=allowed)) == whole


def test_real_text_in_lines_has_the_ids_of_the_whole(data: Path, gpt2: Tokenizer) -> None:
    text = (data / "udhr_multilingual.txt").read_bytes().decode()
    assert list(gpt2.encode_iterable(text.splitlines(keepends=True))) == gpt2.encode(text)
    assert list(gpt2.encode_iterable(text)) == gpt2.encode(text)


def test_endless_text_is_encoded_as_it_comes(gpt2: Tokenizer) -> None:
    assert len(list(islice(gpt2.encode_iterable(repeat("and so on, ")), 100_000))) == 100_000


@given(ids=st.lists(st.integers(0, 265)))
def test_streamed_decoding_is_decoding(toy: Tokenizer, ids: list[int]) -> None:
    decoder = StreamingDecoder(toy)
    assert "".join(decoder.push([token_id]) for token_id in ids) + decoder.flush() == toy.decode(ids)


# Arrays, batches, files


def test_arrays_hold_the_ids_in_the_smallest_type(gpt2: Tokenizer) -> None:
    text = "Two households, both alike in dignity" + END_OF_TEXT
    for given_text in (text, text.encode()):
        array = gpt2.encode_to_array(given_text)
        assert array.dtype == np.uint16
        assert array.tolist() == gpt2.encode(text) == gpt2.encode(given_text)
    assert gpt2.encode_to_array("").tolist() == []
    assert Tokenizer(BYTES, [], [f"<{n}>" for n in range(65_280)]).encode_to_array("a<9>").dtype == np.uint16
    assert Tokenizer(BYTES, [], [f"<{n}>" for n in range(65_281)]).encode_to_array("a<65280>").tolist() == [97, 65_536]


@pytest.mark.parametrize("num_threads", [0, 1, 2, 7])
def test_any_number_of_threads_gives_the_same_ids(
    data: Path, gpt2: Tokenizer, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "BLOCK", 1000)
    text = (data / "udhr_multilingual.txt").read_bytes()[:100_000]
    ids = gpt2.encode(text.decode(errors="replace"))
    assert gpt2.encode_to_array(text.decode(errors="replace"), num_threads=num_threads).tolist() == ids
    assert gpt2.encode_to_array(text[:99_990], num_threads=num_threads).tolist() == gpt2.encode(text[:99_990])
    documents = text.decode(errors="replace").split(END_OF_TEXT)
    arrays = gpt2.encode_batch(documents, num_threads=num_threads)
    assert [array.tolist() for array in arrays] == [gpt2.encode(document) for document in documents]
    assert gpt2.count_tokens(text.decode(errors="replace")) == len(ids)


def test_a_batch_may_be_empty_and_hold_empty_texts(toy: Tokenizer) -> None:
    assert toy.encode_batch([]) == []
    arrays = toy.encode_batch(iter(["", "the", b"", "<|eot|>", b"a b"]), allowed_special={"<|eot|>"})
    assert [array.tolist() for array in arrays] == [[], toy.encode("the"), [], [263], [97, 32, 98]]


def test_a_file_has_the_ids_of_its_text(
    data: Path, gpt2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "BLOCK", 1000)
    text = (data / "udhr_multilingual.txt").read_bytes()[:50_001] + b"\xff\xe4\xbd \r\n"
    (tmp_path / "text.txt").write_bytes(text)
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(text))
    for name in ("text.txt", "text.txt.gz"):
        arrays = list(gpt2.encode_file(tmp_path / name))
        assert len(arrays) > 10
        assert np.concatenate(arrays).tolist() == gpt2.encode(text)
    with pytest.raises(DataError, match="nowhere"):
        list(gpt2.encode_file(tmp_path / "nowhere"))


@given(
    data=st.binary(max_size=60)
    | st.lists(st.sampled_from([b"\xe4", b"\xbd", b"\xa0", b"a", b" ", b"<|eot|>"])).map(b"".join)
)
def test_any_bytes_survive_a_round_trip(toy: Tokenizer, data: bytes) -> None:
    assert toy.decode_bytes(toy.encode(data)) == data
    assert toy.encode_to_array(data, allowed_special=set()).tolist() == toy.encode(data, allowed_special=set())
    assert len(toy.encode(data)) == toy.count_tokens(data)


# Special tokens


def test_the_longest_special_token_is_taken(toy: Tokenizer) -> None:
    one, two = toy.special_tokens["<|eot|>"], toy.special_tokens["<|eot|><|eot|>"]
    assert toy.encode("<|eot|>" * 3) == [two, one]
    assert list(toy.encode_iterable("<|eot|>" * 3)) == [two, one]
    assert toy.encode("<|eot|>" * 3, allowed_special={"<|eot|>"}) == [one, one, one]


def test_untrusted_text_makes_no_special_tokens(gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    assert gpt2.encode(END_OF_TEXT) == [50256]
    assert gpt2.encode(END_OF_TEXT, allowed_special=set()) == oracle.encode_ordinary(END_OF_TEXT)


def test_unknown_allowed_special_tokens_are_refused(toy: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"names '<\|nope\|>'; the special tokens are \['<\|eot\|>'"):
        toy.encode("x", allowed_special={"<|nope|>"})
    with pytest.raises(TypeError, match='give "all" or a set'):
        toy.encode_iterable(["x"], allowed_special="<|eot|>")  # pyright: ignore[reportArgumentType]


def test_missing_special_tokens_get_the_next_ids() -> None:
    tokenizer = Tokenizer(BYTES | {256: b"<b>"}, [], ["<a>", "<b>", END_OF_TEXT])
    assert tokenizer.special_tokens == {"<b>": 256, "<a>": 257, END_OF_TEXT: 258}
    assert tokenizer.vocab == BYTES | {256: b"<b>", 257: b"<a>", 258: END_OF_TEXT.encode()}
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (259, 258)


def test_entries_that_are_not_named_as_special_are_only_decoded() -> None:
    tokenizer = Tokenizer(BYTES | {256: END_OF_TEXT.encode()}, [])
    assert tokenizer.encode(END_OF_TEXT) == list(END_OF_TEXT.encode())
    assert tokenizer.decode([256]) == END_OF_TEXT
    assert (tokenizer.special_tokens, tokenizer.eos_token_id) == ({}, None)


def test_an_ordinary_token_cannot_be_special() -> None:
    with pytest.raises(TokenizerError, match="special token 'ab' is an ordinary token"):
        Tokenizer(BYTES | {256: b"ab"}, [(b"a", b"b")], ["ab"])


# Decoding


def test_invalid_utf8_becomes_the_replacement_character(toy: Tokenizer) -> None:
    assert toy.decode([0x61, 0xFF, 0xE4, 0xBD, 0x62]) == "a\ufffd\ufffdb"
    assert toy.decode_bytes([0x61, 0xFF]) == b"a\xff"
    assert toy.decode(iter([])) == ""


@pytest.mark.parametrize("token_id", [266, -1, 10**9])
def test_unknown_ids_are_named(toy: Tokenizer, token_id: int) -> None:
    with pytest.raises(TokenizerError, match=f"{token_id} is no id of the vocabulary, whose size is 266"):
        toy.decode([97, token_id])


# Files


def test_a_saved_tokenizer_is_loaded(toy: Tokenizer, tmp_path: Path) -> None:
    toy.save(tmp_path / "new")
    loaded = Tokenizer.load(tmp_path / "new")
    assert (loaded.vocab, loaded.merges) == (toy.vocab, toy.merges)
    assert loaded.special_tokens == toy.special_tokens
    assert loaded.sha256() == toy.sha256()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["merges.txt", "vocab.json"]


def test_a_missing_tokenizer_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"merges\.txt: cannot be read .* transformerlm-train-tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")


def test_the_hash_tells_tokenizers_apart() -> None:
    vocab = BYTES | {256: b"ab", 257: b"bc"}
    merges = [(b"a", b"b"), (b"b", b"c")]
    hashes = {
        Tokenizer(vocab, merges).sha256(),
        Tokenizer(vocab, merges[::-1]).sha256(),
        Tokenizer(vocab | {256: b"bc", 257: b"ab"}, merges).sha256(),
        Tokenizer(vocab, merges, ["<s>"]).sha256(),
        Tokenizer(vocab | {258: b"<s>"}, merges).sha256(),
    }
    assert len(hashes) == 5
    shuffled = dict(reversed(vocab.items()))
    assert Tokenizer(shuffled, merges).sha256() in hashes


def test_a_pickled_tokenizer_is_the_same(toy: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(toy))
    assert copy.sha256() == toy.sha256()
    assert copy.encode("the <|eot|>") == toy.encode("the <|eot|>")
