"""Whoever does the work, and however often it is killed, the files are the same to the last byte."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from databuilder import build_dataset, plan
from databuilder.engine import open_executor, task_slots, unchanged_environment
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer
from transformerlm.utils.errors import ConfigError, MissingDependencyError, WorkerError

Files = dict[str, bytes]
SHARD_TOKENS = 1500


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> list[Path]:
    """Several files, whose documents come together in every shard."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = [folder / f"{number}.txt" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_text(f"\n{END_OF_TEXT}\n".join(documents[number::5]), encoding="utf-8", newline="")
    return paths


def build(corpus: list[Path], tokenizer: Tokenizer, out: Path, **keywords: Any) -> None:
    build_dataset(
        corpus, tokenizer, out / "t.dat", valid=out / "v.dat", valid_fraction=0.2, shard_tokens=SHARD_TOKENS, **keywords
    )


@pytest.fixture(scope="module")
def expected(
    corpus: list[Path],
    tokenizer: Tokenizer,
    documents: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    oracle: Any,
) -> Files:
    """All files, as one worker writes them undisturbed."""
    out = tmp_path_factory.mktemp("expected")
    build(corpus, tokenizer, out, workers=1)
    valid = [document for document in documents if oracle.is_validation(document, 0.2)]
    assert oracle.read_ids(out / "v.dat") == oracle.ids_of(oracle.shuffled(valid), tokenizer)
    files = oracle.files_in(out)
    assert len(files) > 12
    return files


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def test_more_threads_than_parts_write_the_same(
    corpus: list[Path], tokenizer: Tokenizer, expected: Files, tmp_path: Path, oracle: Any
) -> None:
    for workers in (2, 3, 12):
        build(corpus, tokenizer, tmp_path, workers=workers)
        assert oracle.files_in(tmp_path) == expected


def test_the_size_of_parts_changes_nothing(
    corpus: list[Path],
    tokenizer: Tokenizer,
    expected: Files,
    tmp_path: Path,
    oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MIN_SPLIT_BYTES", 500)
    build(corpus, tokenizer, tmp_path, workers=2)
    assert oracle.files_in(tmp_path) == expected


def test_threads_of_somebody_else_write_the_same(
    corpus: list[Path],
    tokenizer: Tokenizer,
    expected: Files,
    tmp_path: Path,
    oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(corpus[0].parent)
    with ThreadPoolExecutor(3) as executor:
        build(corpus, tokenizer, tmp_path, executor=executor)
        assert executor.submit(int, "1").result() == 1, "it is still its owner's"
    assert oracle.files_in(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_write_the_same(
    corpus: list[Path], tokenizer: Tokenizer, expected: Files, tmp_path: Path, oracle: Any
) -> None:
    with processes() as executor:
        build(corpus, tokenizer, tmp_path, executor=executor, workers=2)
    assert oracle.files_in(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_dask_cluster_of_two_processes_writes_the_same(
    corpus: list[Path], tokenizer: Tokenizer, expected: Files, tmp_path: Path, oracle: Any
) -> None:
    distributed = pytest.importorskip("distributed", reason="needs distributed: uv sync --group data")
    environment = dict(os.environ)
    with open_executor("dask", workers=2) as executor:
        assert task_slots(executor) == 2
        build(corpus, tokenizer, tmp_path / "a", executor=executor)
    assert dict(os.environ) == environment
    assert oracle.files_in(tmp_path / "a") == expected
    with (
        unchanged_environment(),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        open_executor("dask", scheduler_address=cluster.scheduler_address) as executor,
    ):
        build(corpus, tokenizer, tmp_path / "b", executor=executor)
        assert cluster.status.name == "running", "it is still its owner's"
    assert oracle.files_in(tmp_path / "b") == expected


@pytest.mark.timeout(60)
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs distributed: uv sync --group data")
    monkeypatch.setattr("databuilder.engine.CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=r"tcp://127\.0\.0\.1:1: no Dask scheduler answers there"):
        open_executor("dask", scheduler_address="tcp://127.0.0.1:1").__enter__()


def test_without_dask_the_message_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match="uv sync --extra dask"):
        open_executor("dask").__enter__()


def _killed_at(arguments: tuple[Any, ...], moment: int, function: str) -> None:
    """Build, and end this process without a word at the so-manyth call of one of the system's functions."""
    calls = 0
    real: Callable[..., Any] = getattr(os, function)

    def counted(*words: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **keywords)

    setattr(os, function, counted)
    build(*arguments, workers=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("function", "stride"), [("writev", 2), ("fsync", 4), ("rename", 1), ("replace", 7), ("unlink", 7)]
)
def test_killed_at_any_step_the_next_build_writes_the_same(
    function: str,
    stride: int,
    corpus: list[Path],
    tokenizer: Tokenizer,
    expected: Files,
    tmp_path: Path,
    oracle: Any,
) -> None:
    """Each process is killed a stride further on than the one before, until one is not killed any more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["databuilder.dataset_builder"])
    kills = 0
    while True:
        out = tmp_path / str(kills)
        moment = 1 + stride * kills
        process = context.Process(target=_killed_at, args=((corpus, tokenizer, out), moment, function))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        build(corpus, tokenizer, out, workers=2)
        assert oracle.files_in(out) == expected, f"after a kill at call {moment} of {function}"
    assert kills >= 5
    assert oracle.files_in(out) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_again_and_again_it_comes_to_the_same_end(
    corpus: list[Path], tokenizer: Tokenizer, expected: Files, tmp_path: Path, oracle: Any
) -> None:
    """What is finished stays: killed at every tenth flush, it ends all the same."""
    context = multiprocessing.get_context("forkserver")
    kills = 0
    while True:
        process = context.Process(target=_killed_at, args=((corpus, tokenizer, tmp_path), 10, "fsync"))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        kills += 1
        assert kills < 50
    assert kills >= 3
    assert oracle.files_in(tmp_path) == expected


def test_a_process_that_is_gone_is_said_and_the_work_kept(
    corpus: list[Path], tokenizer: Tokenizer, expected: Files, tmp_path: Path, oracle: Any
) -> None:
    class Broken(ThreadPoolExecutor):
        tasks = 0

        def submit(self, fn: Any, /, *words: Any, **keywords: Any) -> Any:
            self.tasks += 1
            if self.tasks == 4:
                fn, words = _lost, ()
            return super().submit(fn, *words, **keywords)

    with Broken(1) as executor, pytest.raises(WorkerError, match=r"what is finished is kept in .*t\.dat\.build"):
        build(corpus, tokenizer, tmp_path, executor=executor, workers=1)
    assert list((tmp_path / "t.dat.build").glob("part-*"))
    build(corpus, tokenizer, tmp_path)
    assert oracle.files_in(tmp_path) == expected


def _lost() -> None:
    from concurrent.futures.process import BrokenProcessPool

    raise BrokenProcessPool
