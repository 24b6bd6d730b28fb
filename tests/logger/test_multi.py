"""Several backends at once see the same calls, and one that fails does not keep the others open."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from logger.base import Logger
from logger.multi import MultiLogger
from logger.noop import NoopLogger


class _Recorder:
    def __init__(self, calls: list[tuple[object, ...]], name: str, *, fails: bool = False) -> None:
        self._calls, self._name, self._fails = calls, name, fails

    def start(self, config: Mapping[str, object]) -> None:
        self._calls.append((self._name, "start", config))

    def log(self, record: Mapping[str, object]) -> None:
        self._calls.append((self._name, "log", record))

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        self._calls.append((self._name, "artifact", path, name, kind))

    def finish(self, exit_code: int = 0) -> None:
        self._calls.append((self._name, "finish", exit_code))
        if self._fails:
            raise OSError("disk full")


def _use(logger: Logger) -> None:
    logger.start({"a": 1})
    logger.log({"step": 1})
    logger.log_artifact(Path("x"), name="n", kind="k")
    logger.finish(3)


def test_every_call_reaches_every_logger_in_order() -> None:
    calls: list[tuple[object, ...]] = []
    _use(MultiLogger([_Recorder(calls, "a"), NoopLogger(), _Recorder(calls, "b")]))

    expected = [("start", {"a": 1}), ("log", {"step": 1}), ("artifact", Path("x"), "n", "k"), ("finish", 3)]
    assert calls == [(name, *call) for call in expected for name in "ab"]


def test_finish_reaches_the_loggers_after_one_that_fails() -> None:
    calls: list[tuple[object, ...]] = []
    logger = MultiLogger([_Recorder(calls, "a", fails=True), _Recorder(calls, "b")])
    with pytest.raises(OSError, match="disk full"):
        logger.finish(1)

    assert calls == [("a", "finish", 1), ("b", "finish", 1)]
