"""Vocabularies unlike GPT-2's: gaps between ids, missing bytes, tokens with the same bytes. With both backends."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from transformerlm.tokenizer import Tokenizer, train_bpe
from transformerlm.tokenizer import backend as layers
from transformerlm.utils.errors import TokenizerError

BYTES = {byte: bytes([byte]) for byte in range(256)}
TOY = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
TOY_MERGES = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]


@pytest.fixture(params=["plain", "compiled"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = request.param == "compiled"
    monkeypatch.setattr(layers, "SHORT", -1 if compiled else 1 << 60)
    monkeypatch.setattr(layers, "TEXT", layers.Threshold(0, 0) if compiled else layers.Threshold(1 << 60, 1 << 60))


def test_the_teaching_example() -> None:
    tokenizer = Tokenizer(TOY, TOY_MERGES)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert list(tokenizer.encode_iterable(["the c", "at ate"])) == [9, 7, 1, 5, 10, 3]
    assert [ids.tolist() for ids in tokenizer.encode_batch(["the", " at"])] == [[9], [10]]
    assert tokenizer.count_tokens("the cat ate") == 6
    assert tokenizer.decode([9, 7, 1, 5, 10, 3]) == "the cat ate"


@pytest.mark.parametrize("length", [1, 10, 200])  # merged by the definition, and by a heap
def test_bytes_that_are_no_tokens_are_left_out_before_merging(length: int) -> None:
    tokenizer = Tokenizer(TOY, TOY_MERGES)
    assert tokenizer.encode("t" + "x" * length + "he") == [9]
    assert tokenizer.encode("xé" * length) == []
    assert tokenizer.encode(("xé" * length + " the") * 2) == [0, 9] * 2
    assert tokenizer.encode("the cat", errors="strict") == [9, 7, 1, 5]
    with pytest.raises(TokenizerError, match="has the byte b'x', which the vocabulary lacks"):
        tokenizer.encode("thxe", errors="strict")
    with pytest.raises(TokenizerError, match="errors is 'replace'"):
        tokenizer.encode("the", errors="replace")  # pyright: ignore[reportArgumentType]


@given(text=st.text("athce xé\n", max_size=150), unknown=st.booleans())
def test_missing_bytes_are_as_in_tokenizers(text: str, unknown: bool) -> None:
    """Which merges the whole text here, as there is no pre-tokenization: so nothing that is cut."""
    text = text.replace(" ", "").replace("\n", "").replace("é", "q")
    vocab = {token.decode(): token_id for token_id, token in TOY.items()} | {"<unk>": 20}
    merges = [(left.decode(), right.decode()) for left, right in TOY_MERGES]
    model = models.BPE(vocab=vocab, merges=merges, **({"unk_token": "<unk>"} if unknown else {}))
    ours = Tokenizer(TOY | {20: b"<unk>"}, TOY_MERGES, unknown_token="<unk>" if unknown else None)
    assert ours.encode(text) == tokenizers.Tokenizer(model).encode(text).ids


def test_an_unknown_token_is_kept_in_the_files(tmp_path: Path) -> None:
    ours = Tokenizer(TOY | {20: b"<unk>"}, TOY_MERGES, ["<unk>"], unknown_token="<unk>")
    ours.save(tmp_path)
    for copy in (ours, Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(ours))):
        assert copy.encode("thxxe") == [6, 20, 20, 3]
        assert copy.sha256() == ours.sha256() != Tokenizer(TOY | {20: b"<unk>"}, TOY_MERGES, ["<unk>"]).sha256()
        with pytest.raises(TokenizerError, match="has the byte b'x'"):
            copy.encode("thxe", errors="strict")
    with pytest.raises(TokenizerError, match="unknown_token is '<x>', which is no token"):
        Tokenizer(TOY, TOY_MERGES, unknown_token="<x>")


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    ours = Tokenizer(BYTES | {300: b"ab"}, [(b"a", b"b")], ["<s>"])
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    for copy in (ours, Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(ours))):
        assert (copy.vocab_size, copy.special_tokens) == (302, {"<s>": 301})
        assert copy.encode("ab<s>b") == [300, 301, 98]
        assert copy.encode_to_array("ab<s>b").tolist() == [300, 301, 98]
        assert copy.decode([300, 301, 98]) == "ab<s>b"
        assert copy.sha256() == ours.sha256() != Tokenizer(BYTES | {299: b"ab"}, [(b"a", b"b")], ["<s>"]).sha256()
        for ids in ([97, 256], np.array([97, 299])):
            with pytest.raises(TokenizerError, match=f"{ids[1]} is the id of no token: the ids .* have a gap there"):
                copy.decode(ids)
    wide = Tokenizer(BYTES | {1 << 16: b"ab"}, [(b"a", b"b")])
    assert (wide.encode_to_array("ab").dtype, wide.encode("ab")) == (np.uint32, [1 << 16])


def test_a_special_token_may_have_the_bytes_of_an_ordinary_one(tmp_path: Path) -> None:
    """Its own id, as for "ab" and the tabs; or the same, as for "a"."""
    vocab = BYTES | {256: b"ab", 257: b"\t\t"}
    special = {"a": 97, "ab": 258, "\t\t": 300}
    ours = Tokenizer(vocab, [(b"a", b"b"), (b"\t", b"\t")], special)
    ours.save(tmp_path)
    for copy in (ours, Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(ours))):
        assert (copy.vocab, copy.special_tokens) == (vocab | {258: b"ab", 300: b"\t\t"}, special)
        assert copy.encode("abba\t\t") == [258, 98, 97, 300]
        assert copy.encode("abba\t\t", allowed_special=set()) == [256, 98, 97, 257]
        assert copy.decode([258, 98, 97, 300]) == copy.decode([256, 98, 97, 257]) == "abba\t\t"
        assert copy.sha256() == ours.sha256()


def test_a_special_token_of_one_byte_can_be_trained(tmp_path: Path) -> None:
    vocab, merges = train_bpe(iter(["ab\nab\n"]), 259, ["\n"], num_workers=1)
    ours = Tokenizer(vocab, merges, ["\n"])
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("ab\n") == ours.encode("ab\n") == [256, 257]


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"<s>": 97}, "special token '<s>' has the id 97 of b'a'"),
        ({"<s>": -1}, "has the id -1; give one from 0"),
        ({"<s>": 1 << 40}, "has the id 1099511627776; give one from 0"),
        ({"<s>": 256, "<e>": 256}, "'<e>' has the id 256 of b'<s>'"),
        (["a"], "special token 'a' is an ordinary token; choose another text, or give an id with it"),
    ],
)
def test_ids_that_special_tokens_cannot_have(special: dict[str, int], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(BYTES, [], special)


@pytest.mark.parametrize("ends", [[3, 2, 6], [-1, 6], [2, 7], [2, 5], []])
@pytest.mark.parametrize("threads", [1, 2])
def test_ends_that_do_not_fit_the_data_are_refused(ends: list[int], threads: int) -> None:
    tokenizer = Tokenizer(BYTES, [])
    with pytest.raises(TokenizerError, match="ends does not say where texts end in 6 bytes"):
        tokenizer.encode_joined(b"abcdef", np.array(ends, np.int64), num_threads=threads)
    with pytest.raises(TokenizerError, match="ends is an array of float64"):
        tokenizer.encode_joined(b"abcdef", np.array([6.0]), num_threads=threads)  # pyright: ignore[reportArgumentType]
    ids, id_ends = tokenizer.encode_joined(b"abcdef", np.array([0, 2, 2, 6]), num_threads=threads)
    assert (ids.tolist(), id_ends.tolist()) == (list(b"abcdef"), [0, 2, 2, 6])
