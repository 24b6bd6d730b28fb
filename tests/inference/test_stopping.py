"""Stop strings: the same cut however the text comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformerlm.inference.stopping import StopStrings

stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def cut_when_complete(text: str, stop: list[str]) -> str:
    """Read character by character; cut before the stop string that is first seen whole."""
    for end in range(1, len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@given(pieces=st.lists(st.text("abc", max_size=5)), stop=stops)
def test_the_pieces_join_to_the_text_before_the_stop(pieces: list[str], stop: list[str]) -> None:
    text = "".join(pieces)
    stream = StopStrings(stop)
    shown = "".join(stream.push(piece) for piece in pieces) + stream.flush()
    assert shown == cut_when_complete(text, stop)
    assert stream.stopped == any(word in text for word in stop)


@given(pieces=st.lists(st.text("abc", max_size=5)), stop=stops)
def test_what_is_shown_is_never_taken_back_and_nothing_is_held_needlessly(pieces: list[str], stop: list[str]) -> None:
    stream, text, shown = StopStrings(stop), "", ""
    for piece in pieces:
        text += piece
        shown += stream.push(piece)
        assert text.startswith(shown)
        held = text[len(shown) :]
        assert stream.stopped or not held or any(word.startswith(held) for word in stop)


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["Hello\n", "\nWorld"], ["\n\n"], "Hello"),
        (["one. ", "two. "], [], "one. two. "),
        (["ab", "ac"], ["abab"], "abac"),
        (["x", "END"], ["END"], "x"),
        (["ENDx"], ["END"], ""),
        (["a EN", "D b"], ["END", " b"], "a "),
    ],
)
def test_examples(pieces: list[str], stop: list[str], expected: str) -> None:
    stream = StopStrings(stop)
    assert "".join([*map(stream.push, pieces), stream.flush()]) == expected


def test_after_the_stop_nothing_comes() -> None:
    stream = StopStrings(["."])
    assert [stream.push("a.b"), stream.push("c"), stream.flush()] == ["a", "", ""]
