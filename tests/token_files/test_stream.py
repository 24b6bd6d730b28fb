"""Shards read as one stream, in bounded memory, and a file that changes under the reader is noticed."""

import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.token_files import stream as token_stream
from transformerlm.token_files.stream import TokenStream
from transformerlm.utils.errors import DataError

ROOT = Path(__file__).parents[2]
STATUS = Path("/proc/self/status")


def write(folder: Path, sizes: Sequence[int], dtype: str = "<u2") -> list[tuple[Path, int]]:
    """Write the numbers from 0 on into files of `sizes` ids."""
    files, first = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"x.{number:05}.dat"
        path.write_bytes(np.arange(first, first + size).astype(dtype).tobytes())
        files.append((path, size))
        first += size
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that are written again and again."""
    return tmp_path_factory.mktemp("stream")


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    bounds=st.lists(st.tuples(st.none() | st.integers(-60, 60), st.none() | st.integers(-60, 60)), min_size=1),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_slices_are_those_of_all_ids_in_a_row(
    sizes: list[int], bounds: list[tuple[int | None, int | None]], dtype: str, folder: Path
) -> None:
    stream = TokenStream(write(folder, sizes, np.dtype(dtype).newbyteorder("<").str), dtype)
    ids = np.arange(sum(sizes), dtype=dtype)
    assert len(stream) == len(ids)
    for begin, end in bounds:
        found = stream[begin:end]
        assert found.dtype == dtype
        assert np.array_equal(found, ids[begin:end])


def test_a_slice_is_the_callers_own(tmp_path: Path) -> None:
    stream = TokenStream(write(tmp_path, [5]), "uint16")
    stream[1:3][:] = 9
    assert stream[:].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("advice", [True, False], ids=["madvise", "mapped anew"])
def test_giving_memory_back_and_few_maps_change_nothing(
    advice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_stream, "RESIDENT_BYTES", 1)
    monkeypatch.setattr(token_stream, "MAX_MAPPED", 2)
    if not advice:
        monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    stream = TokenStream(write(tmp_path, [7] * 9), "uint16")
    for begin in np.random.default_rng(0).integers(0, 63, 200).tolist():
        assert stream[begin : begin + 20].tolist() == list(range(begin, min(63, begin + 20)))
        assert len(stream._maps) <= 2


def test_a_missing_and_a_short_shard_are_named(tmp_path: Path) -> None:
    files = write(tmp_path, [4, 4, 4])
    with pytest.raises(DataError, match=r"x\.00001\.dat: has 8 bytes where its sidecar promises 10; make it again"):
        TokenStream([files[0], (files[1][0], 5), files[2]], "uint16")
    files[1][0].unlink()
    with pytest.raises(DataError, match=r"x\.00001\.dat: is missing; make the data again with transformerlm-make-data"):
        TokenStream(files, "uint16")


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_other_data_in_a_files_place_is_not_read(how: str, tmp_path: Path) -> None:
    files = write(tmp_path, [4, 4])
    stream = TokenStream(files, "uint16")
    assert stream[0:2].tolist() == [0, 1]
    for path, _ in files:
        if how == "replaced":
            path.with_suffix(".new").write_bytes(bytes(8))
            path.with_suffix(".new").replace(path)
        else:
            path.unlink()
    assert stream[0:4].tolist() == [0, 1, 2, 3], "what is mapped stays as it was"
    with pytest.raises(DataError, match=r"x\.00001\.dat: was removed or replaced while it was being read"):
        stream[3:6]


READER = """
import re, sys
from pathlib import Path
import numpy as np
from transformerlm.token_files import stream as token_stream

file, token_stream.RESIDENT_BYTES = Path(sys.argv[1]), int(sys.argv[2])
stream = token_stream.TokenStream([(file, file.stat().st_size // 2)], "uint16")

def resident_kb():
    status = Path("/proc/self/status").read_text()
    return sum(int(size) for size in re.findall(r"Rss(?:File|Shmem):\\s+(\\d+) kB", status))

before, most = resident_kb(), 0
for number, begin in enumerate(np.random.default_rng(0).integers(0, len(stream) - 513, 20_000).tolist()):
    assert len(stream[begin : begin + 513]) == 513
    if number % 100 == 0:
        most = max(most, resident_kb())
print((most - before) / 1024)
"""


@pytest.mark.skipif(
    not STATUS.exists() or "RssFile" not in STATUS.read_text(encoding="utf-8"), reason="needs Linux's /proc/self/status"
)
@pytest.mark.timeout(120)
def test_memory_is_bounded_however_much_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.dat"
    with file.open("wb") as opened:
        opened.truncate(300 << 20)  # a file of zeros that takes no room
    megabytes = []
    for limit in (32 << 20, 1 << 40):
        words = [sys.executable, "-c", READER, str(file), str(limit)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        megabytes.append(float(done.stdout))
    assert megabytes[0] < 40
    assert megabytes[1] > 70, "without giving back, what was read stays"
