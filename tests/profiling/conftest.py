"""A stand-in for torch's NVTX functions that writes down what is called."""

import pytest

from profiling import nvtx


class _FakeNvtx:
    """Records pushes as `+name`, pops as `-`, marks as `!name`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def range_push(self, msg: str, /) -> None:
        self.calls.append(f"+{msg}")

    def range_pop(self) -> None:
        self.calls.append("-")

    def mark(self, msg: str, /) -> None:
        self.calls.append(f"!{msg}")


@pytest.fixture
def nvtx_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Switch NVTX on at the level `coarse`, and return the list of what is called from then on."""
    fake = _FakeNvtx()
    monkeypatch.setattr(nvtx, "load_backend", lambda: fake)
    monkeypatch.setenv(nvtx.SWITCH, "1")
    monkeypatch.delenv(nvtx.LEVEL_SWITCH, raising=False)
    return fake.calls
