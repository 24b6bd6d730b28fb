"""Progress goes to stderr, and without a terminal it is a plain line now and then."""

import time

import pytest

from cli.progress import progress_bar, say


def test_words_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_without_a_terminal_there_is_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress_bar("work") as update:
        for done in range(31):
            now[0] = 100.0 + done
            update(done / 30, f"at {done}")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split() for line in err.splitlines()] == [
        ["work", "33%", "at", "10", "20", "s", "left"],
        ["work", "67%", "at", "20", "10", "s", "left"],
        ["work", "100%", "at", "30", "0", "s", "left"],
    ]


def test_before_anything_is_done_no_time_is_foretold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress_bar("work") as update:
        now[0] = 111.0
        update(0.0, "at 0")
    assert capsys.readouterr().err.split() == ["work", "0%", "at", "0"]


def test_a_bar_on_a_terminal_leaves_stdout_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("work") as update:
        update(0.5, "half")
        print('{"data": 1}')
    out, err = capsys.readouterr()
    assert out == '{"data": 1}\n'
    assert "work" in err


def test_a_bar_that_is_off_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("work", enabled=False) as update:
        update(0.5, "half")
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_to_the_bars_terminal_goes_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress_bar("work") as update:
        update(0.5, "half")
        print("step 1")
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1\n" in err
