"""The noop backend leaves no trace."""

from pathlib import Path

import pytest

from logger.noop import NoopLogger


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    logger = NoopLogger()
    logger.start({"a": 1})
    logger.log({"value": object()})
    logger.log_artifact(Path("absent"), name="n", kind="k")
    logger.finish(1)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
