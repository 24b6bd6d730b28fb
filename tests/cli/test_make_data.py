"""`transformerlm-make-data` as people run it: stopped, killed, started twice, without room, without permission."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli import make_data
from databuilder.build_directory import build_folder
from transformerlm.token_files.index import read_info, verify_data
from transformerlm.tokenizer import END_OF_TEXT

ROOT = Path(__file__).parents[2]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A folder with twelve files, which take plain Python about two seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        texts = (f"File {number}, text {text}. " + " ".join(documents[text : text + 20]) for text in range(100))
        (folder / f"{number:02d}.txt").write_text(f"\n{END_OF_TEXT}\n".join(texts), encoding="utf-8", newline="")
    return folder


def words(corpus: Path, workspace: Path, out: Path) -> list[str]:
    """The command line of a build."""
    return [
        *("--input.sources", str(corpus), "--input.valid-fraction", "0.1", "--output.shard-tokens", "40000"),
        *("--output.tokenizer", str(workspace / "tokenizer"), "--output.workers", "2"),
        *("--output.train", str(out / "t.dat"), "--output.valid", str(out / "v.dat")),
    ]


@pytest.fixture
def build(run_main: Command, corpus: Path, workspace: Path, tmp_path: Path) -> Command:
    """Builds in this process, with further words."""
    return lambda *more: run_main(make_data.main, *words(corpus, workspace, tmp_path / "out"), *more)


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the real command in a process of its own, in plain Python, which gives time to stop it."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "cli.make_data", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def words_of_the_end(process: subprocess.Popen[str]) -> str:
    """Return what a process says on stderr until it ends; of one that does not, say where its threads are."""
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"it does not end:\n{process.communicate()[1]}")


def wait_for(count: int, pattern: str, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Return True as soon as so many files match, False if the process has ended before."""
    end = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "it took too long"
    return True


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(corpus: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed build writes."""
    out = tmp_path_factory.mktemp("expected")
    with started(words(corpus, workspace, out)) as process:
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
    files = files_in(out)
    assert len(files) > 10
    for name in ("t.dat", "v.dat"):
        verify_data(out / name, read_info(out / name))
    return files


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_three_kills_at_random_moments_change_nothing(
    corpus: Path, workspace: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = build_folder(out / "t.dat")
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    finished = 0
    for pattern, count in (
        ("part-??????", moments.randint(1, 4)),
        ("part-??????", moments.randint(6, 11)),
        ("shard-*.json", moments.randint(1, 5)),
    ):
        with started(words(corpus, workspace, out)) as process:
            assert wait_for(count, pattern, work, process), f"it was done before the kill (seed {seed})"
            time.sleep(0.02 * moments.random())
            process.kill()
            assert process.wait(20) == -signal.SIGKILL, f"seed {seed}"
        assert not list(out.glob("*.json")), f"it was done before the kill (seed {seed})"
        parts = len(list(work.glob("part-??????")))
        assert parts >= finished, "what was finished was done again"
        finished = parts
    assert finished == 12
    with started(words(corpus, workspace, out)) as process:
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert f"resuming the unfinished build in {work}" in process.stderr.read()
    assert files_in(out) == expected, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_the_same_command_continues(
    number: signal.Signals, code: int, corpus: Path, workspace: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = build_folder(out / "t.dat")
    with started(words(corpus, workspace, out)) as process:
        assert wait_for(3, "part-??????", work, process)
        process.send_signal(number)
        err = words_of_the_end(process)
    assert process.returncode == code, err
    assert f"stopped; what is finished is kept in {work}, and the same command continues\n" in err
    assert "Traceback" not in err
    assert [path.name for path in out.iterdir() if path.is_file()] == []
    assert len(list(work.glob("part-??????"))) >= 3
    with started(words(corpus, workspace, out)) as process:
        assert process.wait(60) == 0
    assert files_in(out) == expected


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_builder_of_one_output_is_refused(
    build: Command, corpus: Path, workspace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(words(corpus, workspace, out)) as process:
        assert wait_for(1, "part-??????", build_folder(out / "t.dat"), process)
        process.send_signal(signal.SIGSTOP)
        done = build()
        refused = f"{build_folder(out / 't.dat')}: another process is at work in it; wait for it, or choose another"
        assert (done.code, done.err.splitlines()[-1]) == (2, f"error: {refused}")
        other = build("--output.train", out / "other.dat")
        refused = f"{build_folder(out / 'v.dat')}: another process is at work in it; wait for it, or choose another"
        assert (other.code, other.err.splitlines()[-1]) == (2, f"error: {refused}")
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    assert read_info(out / "t.dat").num_documents == 1200 - read_info(out / "v.dat").num_documents


def test_it_says_what_it_wrote_and_what_it_left_out(run_main: Command, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one##two##\xff##caf\xc3\xa9####three")
    command = ("--input.sources", tmp_path / "a.txt", "--input.separator", "##", "--input.errors", "skip")
    output = ("--output.tokenizer", workspace / "tokenizer", "--output.train", tmp_path / "t.dat")
    done = run_main(make_data.main, *command, *output, "--output.shard-tokens", 8)
    assert (done.code, done.out) == (0, "")
    assert f"wrote {tmp_path}/t.dat: " in done.err
    assert " files, 4 documents, " in done.err
    assert "left out: 1 documents (0.0 MB) that are not UTF-8, 1 empty documents\n" in done.err
    assert json.loads((tmp_path / "t.dat.json").read_text())["text"]["documents_not_utf8"] == 1
    done = run_main(make_data.main, *command[:-1], "strict", *output)
    replaced, wrong = done.err.splitlines()
    assert (done.code, replaced) == (2, f"{tmp_path}/t.dat: the token file that is there will be replaced")
    assert "a.txt: not UTF-8 at byte 10 " in wrong


def test_other_settings_begin_afresh_with_a_line_that_says_so(
    build: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = build_folder(tmp_path / "out/t.dat")
    with monkeypatch.context() as patch:
        patch.setattr("databuilder.build.write_shard", _interrupted)
        done = build()
    assert done.code == 130
    assert len(list(work.glob("part-??????"))) == 12
    done = build("--output.seed", 5)
    assert done.code == 0
    assert f"{work} holds a build with other settings (seed); starting over\n" in done.err
    assert not work.exists()


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Sets the size that a file of this process may have: a failure of the system that needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1000, 350_000])
def test_a_write_that_fails_keeps_the_old_data_and_what_is_finished(
    size: int, build: Command, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    """First in a spool; then in a shard, which is longer than any spool."""
    large = ("--output.shard-tokens", 200_000)
    assert build(*large).code == 0
    expected = files_in(tmp_path / "out")
    assert build(*large, "--output.seed", 1).code == 0
    before = files_in(tmp_path / "out")
    limit_files(size)
    done = build(*large)
    limit_files(resource.RLIM_INFINITY)
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"error: {tmp_path}/out/" in errors[0]
    assert " cannot be written: File too large (" in errors[0]
    assert " free); mend that, and start again" in errors[0]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    if size > 1000:
        assert f"what is finished is kept in {build_folder(tmp_path / 'out/t.dat')}" in errors[0]
    assert build(*large).code == 0
    assert files_in(tmp_path / "out") == expected


@contextmanager
def a_disk_of(megabytes: float, folder: Path) -> Iterator[Path]:
    """A file system of that size, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={round(megabytes * 1e6)}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("may not mount a tmpfs; the test beside this one limits the size of files instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=20, check=True)


def test_a_disk_that_fills_up_keeps_what_is_finished(
    build: Command, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_disk_of(1.0, tmp_path / "disk") as disk:
        outputs = ("--output.train", disk / "t.dat", "--output.valid", disk / "v.dat")
        done = build(*outputs)
        assert (done.code, "the data needs about " in done.err) == (2, True)
        assert list(disk.iterdir()) == []

        monkeypatch.setattr("databuilder.plan.require_free_space", lambda *_: None)
        monkeypatch.setattr("transformerlm.utils.files.require_free_space", lambda *_: None)
        done = build(*outputs)
        assert done.code == 2
        error = done.err.splitlines()[-1]
        assert error.startswith(f"error: {disk}/")
        assert " cannot be written: No space left on device (" in error
        assert f"what is finished is kept in {disk}/t.dat.build" in error
        assert list((disk / "t.dat.build").glob("part-??????"))
        assert not list(disk.glob("*.json"))

        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], timeout=20, check=True)
        done = build(*outputs)
        assert done.code == 0
        assert f"resuming the unfinished build in {disk}/t.dat.build" in done.err
        assert files_in(disk) == expected


def _as_nobody(arguments: list[str], said: str) -> None:
    """Run the command in this process, which from now on has no rights; write its exit code and its words to `said`."""
    with open(said, "w", encoding="utf-8") as sys.stderr:  # noqa: PTH123
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        sys.argv = ["transformerlm-make-data", *arguments]
        print(make_data.main(), file=sys.stderr)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_folder_that_may_not_be_written_to_is_one_line(corpus: Path, workspace: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may act as somebody else")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli.make_data", "databuilder.dataset_builder"])
    with tempfile.TemporaryDirectory() as name:  # nobody may enter pytest's own
        disk = Path(name)
        disk.chmod(0o755)
        shutil.copytree(corpus, disk / "corpus")
        shutil.copytree(workspace / "tokenizer", disk / "tokenizer")
        for folder in (disk / "corpus", disk / "tokenizer"):
            folder.chmod(0o755)
        arguments = [
            *("--input.sources", str(disk / "corpus"), "--output.tokenizer", str(disk / "tokenizer")),
            *("--output.train", str(disk / "t.dat")),
        ]
        process = context.Process(target=_as_nobody, args=(arguments, str(tmp_path / "said")))
        process.start()
        process.join(50)
        assert process.exitcode == 0
        error, code = (tmp_path / "said").read_text(encoding="utf-8").splitlines()[-2:]
        assert code == "2"
        assert error.startswith(f"error: {disk}/t.dat.build: cannot be written to: Permission denied (")
        assert sorted(path.name for path in disk.iterdir()) == ["corpus", "tokenizer"]


_MEASURE = """
import sys
from pathlib import Path
from databuilder import build_dataset
from transformerlm.tokenizer import Tokenizer

source, tokenizer, out = map(Path, sys.argv[1:])
build_dataset([source], Tokenizer.load(tokenizer), out / "t.dat", valid=out / "v.dat", valid_fraction=0.1, workers=2)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_document_of_200_megabytes_takes_hardly_more_memory_than_a_small_corpus(
    workspace: Path, documents: list[str], tmp_path: Path
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc")

    def peak(source: Path) -> float:
        """Return the most megabytes that a build has had resident."""
        command = [sys.executable, "-c", _MEASURE, str(source), str(workspace / "tokenizer"), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=350, check=True)
        return float(done.stdout)

    text = "\n".join(documents)
    several = f"\n{END_OF_TEXT}\n".join(f"{number} {text}" for number in range(40))
    (tmp_path / "small.txt").write_text(several, encoding="utf-8", newline="")
    with (tmp_path / "large.txt").open("w", encoding="utf-8", newline="") as file:
        for number in range(200_000_000 // len(text.encode("utf-8"))):
            file.write(f"{number} {text}\n")
    small, large = peak(tmp_path / "small.txt"), peak(tmp_path / "large.txt")
    train, valid = read_info(tmp_path / "t.dat"), read_info(tmp_path / "v.dat")
    assert (train.num_documents, valid.num_documents) == (1, 1)
    size = (tmp_path / "large.txt").stat().st_size
    assert 0 <= size - train.num_text_bytes - valid.num_text_bytes <= 1  # the last line break
    assert large < small + 400, f"{small:.0f} MB and {large:.0f} MB"


def test_the_tokenizer_of_a_run_or_checkpoint_may_be_named(
    run_main: Command, corpus: Path, workspace: Path, run_folder: Path, tmp_path: Path
) -> None:
    sums = set()
    for folder in (workspace / "tokenizer", run_folder, run_folder / "checkpoints", *run_folder.glob("checkpoints/*")):
        done = run_main(make_data.main, *words(corpus, workspace, tmp_path), "--output.tokenizer", str(folder))
        assert done.code == 0, done.err
        sums.add(read_info(tmp_path / "t.dat").tokenizer_sha256)
    assert len(sums) == 1
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    done = run_main(
        make_data.main, *words(corpus, workspace, tmp_path / "out"), "--output.tokenizer", str(tmp_path / "run")
    )
    assert (done.code, (tmp_path / "out").exists()) == (2, False)
    assert "run: holds no checkpoint; make one with transformerlm-train" in done.err
