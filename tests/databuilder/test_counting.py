"""Pre-tokens counted by parts: the same numbers however the sources are cut, and wherever the tasks run."""

import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from databuilder import counting
from databuilder.counting import Counting, count_sources, count_split, document_blocks
from databuilder.engine import open_executor
from databuilder.job import Meter
from databuilder.pieces import End, Piece, Reading, TextCounts
from databuilder.sources import SourceFile, resolve_sources
from databuilder.splits import cut_into_splits
from transformerlm.tokenizer import bpe as bpe_reference
from transformerlm.tokenizer import train_bpe
from transformerlm.tokenizer.bpe_trainer import train_bpe_on_counts
from transformerlm.utils.errors import DataError

SEPARATOR = "<|endoftext|>"
READING = Reading()


@pytest.fixture
def texts() -> list[str]:
    words = [f"word{number % 97} né{number % 31}\n\nand {SEPARATOR[: number % 5]}" for number in range(40)]
    return [" ".join(words[number % 7 :]) + f" {number}" for number in range(400)]


@pytest.fixture
def files(tmp_path: Path, texts: list[str]) -> list[SourceFile]:
    for name, some in (("a.txt", texts[:300]), ("b.txt", texts[300:])):
        (tmp_path / name).write_bytes(f"\n\n{SEPARATOR}\n\n".join(some).encode())
    return resolve_sources([tmp_path])


def as_counter(counts: object) -> Counter[bytes]:
    return counts if isinstance(counts, Counter) else counts.counter()  # type: ignore[attr-defined]


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_count_what_the_reference_does(
    texts: list[str], files: list[SourceFile], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "counting_is_compiled", lambda _: compiled)
    monkeypatch.setattr(counting, "MIN_SPLIT_BYTES", 20_000)
    shares: list[float] = []
    with ThreadPoolExecutor(2) as executor:
        found, text = count_sources(files, READING, [SEPARATOR], executor=executor, workers=2, progress=shares.append)
    assert as_counter(found) == bpe_reference.count_pretokens([text.encode() for text in texts])
    assert text.documents_used == len(texts)
    assert shares == sorted(shares)
    vocabulary = train_bpe_on_counts(found, 400, [SEPARATOR])
    assert vocabulary == train_bpe(iter(texts), 400, [SEPARATOR], num_workers=1)


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_cluster_counts_the_same(files: list[SourceFile], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs distributed: uv sync --group data")
    monkeypatch.setattr(counting, "MIN_SPLIT_BYTES", 50_000)
    found = []
    for engine in ("local", "dask"):
        with open_executor(engine, 2) as executor:
            pretokens, text = count_sources(files, READING, [SEPARATOR], executor=executor, workers=2)
        found.append((as_counter(pretokens), text))
    assert found[0] == found[1]


def test_a_parts_counts_can_be_sent(files: list[SourceFile]) -> None:
    part = cut_into_splits(files)[0]
    for compiled in (False, True):
        told = pickle.loads(pickle.dumps(Counting(READING, (SEPARATOR,), compiled, 1, Meter())))
        counts = count_split(part, told)
        total = counting._Total(compiled)
        for _ in range(2):
            total.add(pickle.loads(pickle.dumps(counts)))
        with Path(part.source.name).open("rb") as file:
            once = bpe_reference.count_pretokens(
                [document.strip(b"\n") for document in file.read().split(SEPARATOR.encode())]
            )
        assert as_counter(total.pretokens()) == Counter({piece: 2 * count for piece, count in once.items()})


@given(
    documents=st.lists(st.tuples(st.text("ab é1\n<e>", max_size=30), st.booleans(), st.sampled_from([1, 3, 100]))),
    hold=st.booleans(),
)
def test_blocks_hold_the_documents_and_nothing_that_is_dropped(
    documents: list[tuple[str, bool, int]], hold: bool
) -> None:
    batches: list[list[Piece]] = [[]]
    kept: list[bytes] = []
    for text, is_kept, piece_length in documents:
        data = text.encode()
        cuts = [data[start : start + piece_length] for start in range(0, len(data), piece_length)] or [b""]
        is_kept = is_kept or not hold  # without `hold`, nothing is ever dropped
        batches[-1] += [Piece(cut, End.OPEN) for cut in cuts[:-1]]
        batches[-1].append(Piece(cuts[-1] if is_kept else b"", End.FINAL if is_kept else End.DROPPED))
        batches += [[]] * (len(data) % 2)
        kept += [data] if is_kept else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "BLOCK_BYTES", 5)
        blocks = list(document_blocks(batches, ["<e>"], hold=hold))
    found = [text for block in blocks for text in block.texts()]
    assert b"".join(found) == b"".join(kept)
    assert bpe_reference.count_pretokens(found, ["<e>"]) == bpe_reference.count_pretokens(kept, ["<e>"])


def test_an_error_of_a_part_ends_the_counting(tmp_path: Path, files: list[SourceFile]) -> None:
    (tmp_path / "c.txt").write_bytes(b"fine, then \xff")
    bad = resolve_sources([tmp_path / "c.txt"])
    with ThreadPoolExecutor(1) as executor, pytest.raises(DataError, match=r"c\.txt: not UTF-8 at byte 11"):
        count_sources([*files, *bad], READING, [], executor=executor)
    with ThreadPoolExecutor(1) as executor:
        _, text = count_sources(bad, Reading(errors="skip"), [], executor=executor)
    assert text == TextCounts(12, 0, 0, 12, documents_not_utf8=1)
