"""Things small enough to be made for every test run: text, a tokenizer, token files, a trained model."""

import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import settings

from cli import train as train_command
from config.io import load_config
from config.train import TrainConfig
from databuilder import build_dataset
from transformerlm.token_files.index import Shard, documents_path, joint_sha256, read_info, sidecar_path
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe
from transformerlm.utils.files import sha256_file

WORDS = (
    "the a little big old red blue kind cat dog bird fox tree house river hill girl boy ran "
    "sat saw went found lost and but then so with under over near home happy sad again café naïve 你好"
).split()

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # processes inherit it, where it is ignored (pytest-xdist)
settings.register_profile("any machine", deadline=None)  # a busy one is no failure
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that of several processes none is left with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Three hundred short texts, all different."""
    words = random.Random(0)
    return [
        f"Story {number}.\n" + " ".join(words.choices(WORDS, k=words.randint(5, 40))).capitalize() + "."
        for number in range(300)
    ]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A folder with `corpus.txt`, `tokenizer/`, `train.dat` and `valid.dat`. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("workspace")
    corpus = folder / "corpus.txt"
    corpus.write_text(f"\n{END_OF_TEXT}\n".join(documents), encoding="utf-8", newline="")
    vocab, merges = train_bpe(corpus, 320, [END_OF_TEXT], num_workers=1)
    tokenizer = Tokenizer(vocab, merges, [END_OF_TEXT])
    tokenizer.save(folder / "tokenizer")
    build_dataset([corpus], tokenizer, folder / "train.dat", valid=folder / "valid.dat", valid_fraction=0.1)
    return folder


@pytest.fixture
def sharded(workspace: Path, tmp_path: Path) -> Path:
    """The workspace's `train.dat` cut into three shards and an index."""
    info = read_info(workspace / "train.dat")
    ids = np.fromfile(workspace / "train.dat", dtype="<u2")
    begins = np.fromfile(workspace / "train.dat.documents", dtype="<u8")
    path, shards = tmp_path / "train.dat", []
    for number, part in enumerate(np.array_split(np.arange(len(ids)), 3)):
        file = tmp_path / f"train.{number:05}.dat"
        here = begins[(begins >= part[0]) & (begins <= part[-1])] - np.uint64(part[0])
        file.write_bytes(ids[part].tobytes())
        documents_path(file).write_bytes(here.tobytes())
        digests = {"sha256": sha256_file(file), "documents_sha256": sha256_file(documents_path(file))}
        shards.append(Shard(name=file.name, num_tokens=len(part), num_documents=len(here), **digests))
    index = info.model_copy(update={"shards": tuple(shards), "data_sha256": joint_sha256(shards)})
    sidecar_path(path).write_text(index.model_dump_json(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(workspace: Path) -> Tokenizer:
    """A tokenizer of 320 entries, trained on `documents`."""
    return Tokenizer.load(workspace / "tokenizer")


def _train_tables(workspace: Path, runs_dir: Path) -> dict[str, dict[str, Any]]:
    return {
        "data": {
            "train": str(workspace / "train.dat"),
            "valid": str(workspace / "valid.dat"),
            "tokenizer": str(workspace / "tokenizer"),
        },
        "model": {"context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
        "schedule": {"max_learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_iters": 2},
        "training": {"steps": 12, "batch_size": 4, "runs_dir": str(runs_dir), "device": "cpu"},
        "validation": {"interval": 6, "windows": 4, "batch_size": 4},
        "checkpoint": {"interval": 6},
        "logging": {"run_name": "tiny", "interval": 1},
    }


@pytest.fixture
def train_tables(workspace: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a `TrainConfig` whose run takes a fraction of a second; runs go to `tmp_path / "runs"`."""
    return _train_tables(workspace, tmp_path / "runs")


@pytest.fixture
def write_toml(tmp_path: Path) -> Callable[..., Path]:
    """Writes tables to a TOML file in `tmp_path` and returns its path."""

    def write(tables: dict[str, dict[str, Any]], name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def run_folder(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training of twelve steps. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    tables = _train_tables(workspace, folder / "runs")
    tables["logging"]["backend"] = "noop"
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    assert train_command.train(load_config(TrainConfig, path), origin=str(path), show_bar=False) == 0
    return folder / "runs" / "tiny"


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command's `main` in this process with the given words, and returns what it did."""

    def run(main: Callable[[], int], *words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        capsys.readouterr()
        code = main()
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


class WebServer(ThreadingHTTPServer):
    """Serves a folder on the loopback address, with the habits of servers: see `serve`."""

    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool, tells_size: bool, keeps_back: int) -> None:
        super().__init__(("127.0.0.1", 0), partial(_WebRequest, directory=str(folder)))
        self.ranges, self.tells_size, self.keeps_back = ranges, tells_size, keeps_back
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _WebRequest(SimpleHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        server, path, asked = self.server, Path(self.translate_path(self.path)), self.headers.get("Range", "")
        server.requests.append(f"{self.command} {self.path} {asked}".strip())
        if path.is_dir():  # a page of links
            return super().do_GET()
        if not path.exists():
            return self.send_error(404)
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if server.ranges else None
        self.send_response(206 if span else 200)
        if span:
            begin, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1) + 1
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            data = data[begin:end]
        if server.tells_size:
            self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if with_body:
            self.wfile.write(data[: max(0, len(data) - server.keeps_back)])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., WebServer]]:
    """Starts servers of folders. By default they send ranges, tell sizes and keep no bytes of the end back."""
    servers: list[WebServer] = []

    def start(folder: Path, *, ranges: bool = True, tells_size: bool = True, keeps_back: int = 0) -> WebServer:
        servers.append(WebServer(folder, ranges=ranges, tells_size=tells_size, keeps_back=keeps_back))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
