import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarking import bench_tokenizer, runner
from benchmarking.bench_tokenizer import main, write_texts
from benchmarking.runner import CellError, run_cell
from benchmarking.tokenizer_cell import Cell
from benchmarking.tokenizer_rows import OURS
from config.bench_tokenizer import PEER_NAMES, BenchTokenizerSection
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

ROOT = Path(__file__).parents[2]
TEXT = (
    "Once upon a time there was a naïve café owner who said: 'I'll be back in 12 days.'\n\nHe was.\n" * 9 + END_OF_TEXT
)
SECONDS = {OURS: 1.0, "gigatoken": 2.0, "tiktoken": 3.0, "tokenizers": 4.0, "rustbpe": 5.0}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Settings of a small run, whose sources and data lie in the temporary folder."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "tinyshakespeare.txt").write_text(TEXT, encoding="utf-8")
    (data / "udhr_multilingual.txt").write_text(f"{TEXT}人人生而自由，在尊严和权利上一律平等。", encoding="utf-8")
    return [
        *("--benchmark.data", str(data), "--benchmark.megabytes", "0.03", "--benchmark.multilingual-megabytes", "0.02"),
        *("--benchmark.slow-megabytes", "0.005", "--benchmark.pathological-megabytes", "0.001"),
        *("--benchmark.vocab-sizes", "300", "--benchmark.repeats", "1"),
    ]


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Replace the processes by invented figures, as if all peers were installed; returns the cells that were run."""
    cells: list[Cell] = []

    def run(cell: Cell, *, timeout: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        assert timeout > 0
        assert ("NUMBA_CACHE_DIR" in (environment or {})) == (cell.operation == "start")
        cells.append(cell)
        if cell.operation == "prepare":
            sizes = {path.stem: path.stat().st_size for path in Path(cell.text).glob("*.txt")}
            texts = {name: {"bytes": size, "tokens": 1, "distinct_pretokens": 1} for name, size in sizes.items()}
            return {"vocab_size": 300, "texts": texts}
        assert Path(cell.text).exists()
        seconds = dict.fromkeys(("cold", "warm", "import", "construct", "encode", "train"), SECONDS[cell.tool])
        memory = {"memory_before_bytes": 10**5, "peak_memory_bytes": 10**6}
        return {"seconds": seconds, **memory, "same": True, "tokens": ["a"]}

    monkeypatch.setattr(bench_tokenizer, "run_cell", run)
    monkeypatch.setattr(runner, "installed_version", lambda _name: "1.0")
    return cells


@pytest.mark.usefixtures("fake_cells")
def test_one_line_with_the_documented_keys_and_a_table(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    output = capsys.readouterr()
    (line,) = output.out.splitlines()
    summary = json.loads(line)
    assert summary["benchmark"] == "tokenizer"
    assert summary["version.rustbpe"] == "1.0"
    assert summary["tokenizer.vocab_size"] == 300
    assert 30_000 <= summary["text.main.bytes"] < 40_000
    rows = [
        "encode_array.1",
        "encode_array.2",
        "encode_list",
        "short_call",
        "decode_bytes",
        "decode_str",
        "multilingual",
    ]
    for row in rows:
        assert summary[f"{row}.ratio.tiktoken.cold"] == summary[f"{row}.ratio.tiktoken.warm"] == pytest.approx(3)
        assert summary[f"{row}.gigatoken.warm.seconds.median"] == 2
    for kind in ("letter", "newlines", "digits", "letters", "cjk"):
        assert summary[f"pathological.{kind}.ratio.tokenizers.cold"] == pytest.approx(4)
    for threads in (1, 2):
        assert summary[f"train.300.{threads}.ratio.rustbpe.cold"] == pytest.approx(5)
        assert summary[f"train.300.{threads}.rustbpe.peak_memory_mb"] == 1
        assert summary[f"train.300.{threads}.rustbpe.shared_tokens"] == 1
    for state in ("compile", "load"):
        for call in ("import", "construct", "encode", "train"):
            assert summary[f"start.{state}.transformerlm.{call}.seconds.median"] == 1
    assert not [key for key in summary if key.endswith(".status")]
    for words in ("encode to array, 1 thread, cold", "CJK, no spaces", "train 300, 2 threads", "peak memory"):
        assert words in output.err


def test_all_take_turns_with_the_text_that_is_theirs(arguments: list[str], fake_cells: list[Cell]) -> None:
    assert main([*arguments, "--benchmark.rows", "encode_list", "--benchmark.repeats", "2"]) == 0
    preparation, *cells = fake_cells
    assert preparation.operation == "prepare"
    assert [cell.tool for cell in cells] == [OURS, "gigatoken", "tiktoken", "tokenizers"] * 2
    assert [Path(cell.text).stem for cell in cells] == ["main", "main", "main", "main.head"] * 2
    assert all(cell.threads == 1 and cell.ids == cell.text.removesuffix("txt") + "npy" for cell in cells)


def test_a_missing_peer_is_named_and_skipped(
    arguments: list[str], fake_cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "installed_version", lambda name: None if name == "gigatoken" else "1.0")
    assert main([*arguments, "--benchmark.rows", "short_call"]) == 0
    output = capsys.readouterr()
    assert "gigatoken is not installed" in output.err
    summary = json.loads(output.out)
    assert summary["version.gigatoken"] is None
    assert not [key for key in summary if "gigatoken" in key and key != "version.gigatoken"]
    assert "short_call.ratio.tiktoken.cold" in summary
    assert "gigatoken" not in {cell.tool for cell in fake_cells}


def test_a_crashing_peer_is_reported_once_and_the_others_go_on(
    arguments: list[str], fake_cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bench_tokenizer.run_cell

    def crash(cell: Cell, **others: Any) -> dict[str, Any]:
        result = run(cell, **others)
        if cell.tool == "tiktoken":
            raise CellError("failed: exit code -11, nothing on stderr")
        return result

    monkeypatch.setattr(bench_tokenizer, "run_cell", crash)
    assert main([*arguments, "--benchmark.rows", "decode", "--benchmark.repeats", "2"]) == 0
    output = capsys.readouterr()
    assert "decode list to str: tiktoken: failed: exit code -11" in output.err
    summary = json.loads(output.out)
    assert summary["decode_str.tiktoken.status"] == "failed: exit code -11, nothing on stderr"
    assert "decode_str.ratio.tokenizers.cold" in summary
    assert [cell.tool for cell in fake_cells].count("tiktoken") == 2  # once a row


def test_texts_of_the_settings(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = BenchTokenizerSection(data=Path(arguments[1]), megabytes=0.02, slow_megabytes=0.001)
    write_texts(settings, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.txt")}
    assert names >= {"main", "main.head", "multilingual", "multilingual.head", "pathological.letter"}
    main_text = (tmp_path / "main.txt").read_bytes()
    head = (tmp_path / "main.head.txt").read_bytes()
    assert 1000 <= len(head) < len(main_text)
    assert main_text.startswith(head)
    # With sources of one's own, and no data.
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    source = tmp_path / "data" / "tinyshakespeare.txt"
    write_texts(BenchTokenizerSection(data=tmp_path / "none", sources=(str(source),), megabytes=0.02), tmp_path)
    assert (tmp_path / "main.txt").read_bytes() == main_text
    assert not (tmp_path / "multilingual.txt").exists()
    assert "udhr_multilingual.txt is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmark.sources", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--benchmark.tokenizer", "nowhere"], "nowhere"),
        (["--benchmark.megabytes", "0"], "benchmark.megabytes"),
        (["--benchmark.vocab-sizes", "257"], "benchmark.vocab_sizes"),
        (["--benchmark.rows", "decoding"], "benchmark.rows"),
        (["--benchmark.peers", "nobody"], "benchmark.peers"),
    ],
)
@pytest.mark.usefixtures("fake_cells")
def test_a_mistake_is_one_line(
    words: list[str], said: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[:2], *words]) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert said in line
    assert captured.out == ""


@pytest.mark.usefixtures("fake_cells")
def test_sources_without_words_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dots.txt").write_text("... !\n", encoding="utf-8")
    assert main([*arguments, "--benchmark.sources", str(tmp_path / "dots.txt")]) == 2
    assert "the sources hold no words" in capsys.readouterr().err


def test_a_process_that_fails_or_hangs_gives_its_status() -> None:
    with pytest.raises(CellError, match=r"failed: exit code 1, KeyError: 'juggle'") as failure:
        run_cell(Cell("juggle", OURS), timeout=60)
    assert "Traceback" in failure.value.__notes__[0]
    with pytest.raises(CellError, match=r"^timeout$"):
        run_cell(Cell("prepare", OURS), timeout=0.01)


def test_module_prints_the_shipped_configuration_without_torch() -> None:
    code = (
        "import sys; from benchmarking.bench_tokenizer import main; "
        "code = main(['--config', 'config/resources/bench_tokenizer.toml', '--print-config']); "
        "sys.exit(code or 'torch' in sys.modules or 'numba' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    section = json.loads(result.stdout)["benchmark"]
    assert section["megabytes"] == 100
    assert section["peers"] == list(PEER_NAMES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_as_a_module(arguments: list[str], tmp_path: Path) -> None:
    """The processes and some rows are real; of the peers the one that is always installed for the tests."""
    Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END_OF_TEXT]).save(tmp_path)
    command = [sys.executable, "-m", "benchmarking.bench_tokenizer", *arguments, "--benchmark.peers", "tiktoken"]
    command += ["--benchmark.tokenizer", str(tmp_path), "--benchmark.threads", "2"]
    command += ["--benchmark.rows", "encode_array", "decode", "train"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    assert summary["tokenizer.vocab_size"] == 257
    assert summary["text.main.tokens"] == summary["text.main.bytes"]
    assert not [key for key in summary if key.endswith(".status")], result.stderr
    rows = ["encode_array.2", "decode_bytes", "decode_str"]
    assert all(summary[f"{row}.ratio.tiktoken.cold"] > 0 for row in rows)
    assert summary["train.300.2.transformerlm.peak_memory_mb"] > 10
    assert "encode to array, 2 threads, warm" in result.stderr
