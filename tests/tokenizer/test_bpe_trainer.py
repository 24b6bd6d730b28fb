"""Training from any source, compiled or plain, on any number of threads: the results are those of the plain layer."""

import gzip
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformerlm.tokenizer import END_OF_TEXT, backend, blocks, bpe, bpe_trainer, count_pretokens, train_bpe
from transformerlm.tokenizer.backend import Threshold
from transformerlm.tokenizer.kernels.jit import available
from transformerlm.utils.errors import DataError, TokenizerError

compiles = pytest.mark.skipif(not available(), reason="numba compiles nothing")

PARTS = [
    *(
        "the",
        " the",
        " a",
        "'ll",
        "'s",
        " 42",
        "7",
        "\n",
        "  ",
        "\t",
        ".",
        "...",
        "<e",
        "é",
        "你好",
        "\u3000",
        "\xa0",
        "🙂",
    ),
    *(" antidisestablishmentarianism", END_OF_TEXT, END_OF_TEXT, "<pad>", "<pad><pad>"),
]
NOT_UTF8 = [b"\xff", b"\xe4\xbd", b"\xc0\x80", b"\xed\xa0\x80", b" \x80"]
SPECIAL = [END_OF_TEXT, "<pad>", "<pad><pad>"]


def corpus_of(tmp_path: Path, text: str | bytes, name: str = "corpus.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def random_text(seed: int, num_parts: int = 3000) -> bytes:
    draw = random.Random(seed)
    parts = [part.encode() for part in draw.sample(PARTS, draw.randint(2, len(PARTS)))]
    parts += draw.sample(NOT_UTF8, draw.choice([0, 0, 2]))
    parts += [draw.randbytes(draw.randint(1, 30)).hex().encode() for _ in range(20)]
    return b"".join(draw.choices(parts, k=num_parts))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all text large enough for the compiled layer, and for many blocks."""
    monkeypatch.setattr(backend, "CORPUS", Threshold(0, 0))
    monkeypatch.setattr(backend, "WORDS", Threshold(0, 0))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)


@compiles
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("seed", range(60))
def test_both_layers_train_the_same(tmp_path: Path, seed: int) -> None:
    text = random_text(seed)
    counts = bpe.count_pretokens([text], SPECIAL)
    path = corpus_of(tmp_path, text)
    assert count_pretokens(path, SPECIAL, num_workers=1 + seed % 3) == counts
    vocab, merges = train_bpe(path, 259 + 200, SPECIAL, num_workers=1 + seed % 3)
    assert merges == bpe.learn_merges(counts, 200)
    assert list(vocab.values())[256:] == [left + right for left, right in merges] + [s.encode() for s in SPECIAL]


@compiles
@pytest.mark.usefixtures("compiled")
def test_blocks_and_workers_and_the_order_of_files_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [corpus_of(tmp_path, random_text(seed), f"{seed}.txt") for seed in range(5)]
    expected = bpe.count_pretokens([path.read_bytes() for path in paths], SPECIAL)
    trained = []
    for block_bytes, workers in [(100, 7), (10_000, 2), (1 << 20, 1), (8, 2)]:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        assert count_pretokens(paths, SPECIAL, num_workers=workers) == expected
        trained.append(train_bpe(paths, 600, SPECIAL, num_workers=workers))
        paths.reverse()
    assert all(result == trained[0] for result in trained)


@compiles
@pytest.mark.usefixtures("compiled")
def test_the_same_documents_in_other_files_train_the_same(tmp_path: Path) -> None:
    documents = random_text(3, 20_000).split(END_OF_TEXT.encode())
    one = corpus_of(tmp_path, END_OF_TEXT.encode().join(documents))
    many = [corpus_of(tmp_path, part, f"{number}.txt") for number, part in enumerate(documents[:50])]
    rest = corpus_of(tmp_path, gzip.compress(END_OF_TEXT.encode().join(documents[50:])), "rest.gz")
    expected = train_bpe(one, 500, SPECIAL)
    assert train_bpe([rest, *many], 500, SPECIAL) == expected
    assert train_bpe(iter(documents), 500, SPECIAL) == expected
    assert bpe.count_pretokens(documents, SPECIAL) == count_pretokens(one, SPECIAL)


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_texts_of_a_generator_stand_for_themselves(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CORPUS", Threshold(size, size))

    def texts() -> Iterator[str | bytes]:
        yield from ["one tw", b"o one\r\n", "", "\ud83d\ude00\udc80"]

    emoji = "😀\ufffd".encode()  # surrogates become what they stand for, as in `Tokenizer.encode`
    assert count_pretokens(texts()) == {b"one": 1, b" tw": 1, b"o": 1, b" one": 1, b"\r\n": 1, emoji: 1}


def test_real_text_trains_the_same_in_both_layers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / "udhr_multilingual.txt"
    plain = train_bpe(path, 400, [END_OF_TEXT])
    monkeypatch.setattr(backend, "CORPUS", Threshold(0, 0))
    monkeypatch.setattr(backend, "WORDS", Threshold(0, 0))
    assert train_bpe(path, 400, [END_OF_TEXT], num_workers=2) == plain


def test_a_small_corpus_does_not_load_numba(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, "a few words " * 1000)
    program = (
        "import sys; from transformerlm.tokenizer import train_bpe; "
        f"train_bpe({str(path)!r}, 270, []); print('numba' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "False\n"


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


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_the_vocabulary_stays_small_when_no_pairs_are_left(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "CORPUS", Threshold(size, size))
    monkeypatch.setattr(backend, "WORDS", Threshold(size, size))
    vocab, merges = train_bpe(corpus_of(tmp_path, "ab"), 1000, [END_OF_TEXT])
    assert merges == [(b"a", b"b")]
    assert vocab[257] == END_OF_TEXT.encode()
    assert len(vocab) == 258
    vocab, merges = train_bpe(corpus_of(tmp_path, ""), 300, [END_OF_TEXT])
    assert (len(vocab), merges) == (257, [])


def test_special_tokens_enter_no_merge_and_join_no_neighbours(tmp_path: Path) -> None:
    path = corpus_of(tmp_path, "ab<s><s>cd<s> <s><s>ab")
    assert count_pretokens(path, ["<s>", "<s><s>"]) == {b"ab": 2, b"cd": 1, b" ": 1}


def test_files_do_not_join_and_may_be_compressed(tmp_path: Path) -> None:
    plain = corpus_of(tmp_path, "one tw")
    packed = corpus_of(tmp_path, gzip.compress(b"o one\r\n"), "b.gz")
    assert count_pretokens([plain, packed]) == {b"one": 1, b" tw": 1, b"o": 1, b" one": 1, b"\r\n": 1}


@compiles
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_in_the_source_ends_the_counting(tmp_path: Path, workers: int) -> None:
    packed = gzip.compress(random_text(0, 30_000))
    with pytest.raises(DataError, match="damaged compressed file"):
        count_pretokens(corpus_of(tmp_path, packed[:-20], "cut.gz"), num_workers=workers)


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_progress_rises_to_the_end_of_both_stages(data: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CORPUS", Threshold(size, size))
    reports: list[tuple[str, float]] = []
    path = data / "tinyshakespeare.txt"
    train_bpe([path, path], 800, [], progress=lambda stage, done: reports.append((stage, done)))
    assert [stage for stage, _ in reports] == sorted(stage for stage, _ in reports)
    for stage in ("count", "merge"):
        shares = [done for name, done in reports if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert len(reports) > 6


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


def test_counts_may_come_as_a_dictionary() -> None:
    counts = Counter({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6})
    expected = [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow")]
    assert bpe_trainer.learn_merges(counts, 4) == expected
