"""Training against a trainer that recounts everything after each merge."""

import gzip
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    bpe_trainer,
    count_pretokens,
    learn_merges,
    train_bpe,
)
from transformerlm.tokenizer.pretokenize import pretokenize
from transformerlm.utils.errors import DataError, TokenizerError

Merges = list[tuple[bytes, bytes]]


def naive_merges(counts: Mapping[bytes, int], num_merges: int) -> Merges:
    """The definition: count all pairs of byte strings, merge the best everywhere, start again."""
    words = [([bytes([byte]) for byte in piece], count) for piece, count in counts.items()]
    merges: Merges = []
    while len(merges) < num_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [(naive_merge(word, best), count) for word, count in words]
    return merges


def naive_merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged = list(word)
    for at in range(len(word)):  # past the end of `merged`, slices are too short to equal the pair
        if tuple(merged[at : at + 2]) == pair:
            merged[at : at + 2] = [pair[0] + pair[1]]
    return merged


def corpus_of(tmp_path: Path, text: str, name: str = "corpus.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_the_example_of_sennrich_et_al() -> None:
    counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
    merges = learn_merges(counts, 6)
    assert merges == [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")]


def test_pretokens_that_do_not_occur_are_not_merged() -> None:
    assert learn_merges({b"ab": 0, b"cd": 1}, 5) == [(b"c", b"d")]


@pytest.mark.parametrize("alphabet", ["ab", "abcde", "aé你", "a\x00\xff"])
def test_merges_are_those_of_the_definition(alphabet: str) -> None:
    words = st.text(alphabet=alphabet, min_size=1, max_size=12).map(str.encode)

    @given(st.dictionaries(words, st.integers(1, 4), max_size=12), st.integers(0, 60))
    def check(counts: dict[bytes, int], num_merges: int) -> None:
        merges = learn_merges(counts, num_merges)
        assert merges == naive_merges(counts, num_merges)
        backwards = dict(reversed(counts.items()))
        assert merges == learn_merges(backwards, num_merges)

    check()


@given(st.text(alphabet="abc", min_size=30, max_size=200))
def test_every_trained_vocabulary_makes_a_tokenizer(text: str) -> None:
    merges = learn_merges({text.encode(): 1}, 100)
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    assert len(set(tokens)) == len(tokens)
    tokenizer = Tokenizer(dict(enumerate(tokens)), merges)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_text_gives_the_merges_of_the_definition(data: Path, tmp_path: Path) -> None:
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
    vocab, merges = train_bpe(corpus_of(tmp_path, text), 256 + 60, [])
    assert merges == naive_merges(Counter(piece.encode() for piece in pretokenize(text)), 60)
    assert list(vocab.values())[256:] == [left + right for left, right in merges]


def test_ids_are_bytes_then_merges_then_special_tokens(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, f"the theme{END_OF_TEXT}the then<pad>")
    vocab, merges = train_bpe(path, 256 + 3 + 2, [END_OF_TEXT, "<pad>"])
    assert [vocab[byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert merges == [(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]
    assert [vocab[token_id] for token_id in range(256, 261)] == [
        b"th",
        b"the",
        b" the",
        END_OF_TEXT.encode(),
        b"<pad>",
    ]
    assert list(vocab) == list(range(261))


def test_the_vocabulary_stays_small_when_no_pairs_are_left(tmp_path: Path) -> None:
    vocab, merges = train_bpe(corpus_of(tmp_path, "ab"), 1000, [END_OF_TEXT])
    assert merges == [(b"a", b"b")]
    assert vocab[257] == END_OF_TEXT.encode()
    assert len(vocab) == 258


def test_an_empty_corpus_gives_bytes_and_special_tokens(tmp_path: Path) -> None:
    vocab, merges = train_bpe(corpus_of(tmp_path, ""), 300, [END_OF_TEXT])
    assert (len(vocab), merges) == (257, [])


def test_special_tokens_enter_no_merge_and_join_no_neighbours(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, "ab<s><s>cd<s> <s><s>ab")
    assert count_pretokens(path, ["<s>", "<s><s>"]) == {b"ab": 2, b"cd": 1, b" ": 1}


def test_files_do_not_join_and_may_be_compressed(tmp_path: Path) -> None:
    plain = corpus_of(tmp_path, "one tw")
    packed = tmp_path / "b.gz"
    packed.write_bytes(gzip.compress(b"o one\r\n"))
    assert count_pretokens([plain, packed]) == {b"one": 1, b" tw": 1, b"o": 1, b" one": 1, b"\r\n": 1}


@pytest.mark.parametrize("block_chars", [1, 7, 100])
def test_blocks_do_not_change_the_counts(tmp_path: Path, block_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"It's   a test,\n\n\n isn't it?{END_OF_TEXT}12 你好 34ab\t" * 20
    path = corpus_of(tmp_path, text)
    whole = count_pretokens(path, [END_OF_TEXT])
    monkeypatch.setattr(bpe_trainer, "COUNT_BLOCK_CHARS", block_chars)
    assert count_pretokens(path, [END_OF_TEXT]) == whole
    assert whole.total() == sum(len(pretokenize(part)) for part in text.split(END_OF_TEXT))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_any_number_of_workers_gives_the_same_result(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_trainer, "MIN_BYTES_PER_WORKER", 1)
    monkeypatch.setattr(bpe_trainer, "COUNT_BLOCK_CHARS", 10_000)
    path = data / "udhr_multilingual.txt"
    results = [train_bpe(path, 600, [END_OF_TEXT], num_workers=workers) for workers in (1, 2, 3)]
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_error_in_the_text_ends_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_trainer, "MIN_BYTES_PER_WORKER", 1)
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good " * 100 + b"\xff")
    with pytest.raises(TokenizerError, match="not UTF-8 at byte 500"):
        count_pretokens(path, num_workers=2)


def test_progress_rises_to_the_end_of_both_stages(data: Path) -> None:
    reports: list[tuple[str, float]] = []
    path = data / "tinyshakespeare.txt"
    train_bpe([path, path], 800, [], progress=lambda stage, done: reports.append((stage, done)))
    for stage in ("count", "merge"):
        shares = [done for name, done in reports if name == stage]
        assert len(shares) > 3
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


def test_a_small_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size is 256.* 257; give at least that"):
        train_bpe(corpus_of(tmp_path, "ab"), 256, [END_OF_TEXT])


def test_unfit_arguments_are_refused(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, "ab")
    with pytest.raises(TokenizerError, match="num_workers is 0"):
        count_pretokens(path, num_workers=0)
    with pytest.raises(TokenizerError, match="given twice"):
        train_bpe(path, 300, ["<s>", "<s>"])
    with pytest.raises(DataError, match="no text file"):
        train_bpe([], 300, [])
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        train_bpe(tmp_path / "nowhere.txt", 300, [])
