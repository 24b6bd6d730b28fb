"""Stop strings in streamed text: cut before the first one, and never show half of one."""

from collections.abc import Sequence

from transformerlm.utils.errors import require_list


class StopStrings:
    """Passes text on as it comes, but holds back an end that may be the start of a stop string.

    The pieces that `push` and `flush` return join to the text before the first stop string to be complete.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        require_list("stop", stop)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take the next piece of text; return what may be shown by now."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            # The one that is whole first, however the text came in pieces; of several the longest.
            _, start = min(found)
            self.stopped, self._held = True, ""
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
