"""NVTX ranges around modules: which modules, balanced in every case, and gone after removal."""

import pytest
import torch
from torch import nn

from profiling import attach_nvtx, nvtx


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, error: BaseException | None = None) -> torch.Tensor:
        if error is not None:
            raise error
        return x + self.proj(x)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Block(), _Block()])
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor, error: BaseException | None = None) -> torch.Tensor:
        x = self.layers[0](x)
        return self.head(self.layers[1](x, error=error))


_CALLS = {
    "coarse": ["+_Model", "-"],
    "fine": ["+_Model", "+layers.0", "-", "+layers.1", "-", "-"],
    "verbose": [
        *("+_Model", "+layers.0", "+layers.0.proj", "-", "-"),
        *("+layers.1", "+layers.1.proj", "-", "-", "+head", "-", "-"),
    ],
}


@pytest.mark.parametrize("level", nvtx.LEVELS)
def test_each_level_names_its_modules(level: str, nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.LEVEL_SWITCH, level)
    model, x_BD = _Model(), torch.ones(1, 2)
    expected = model(x_BD)
    with attach_nvtx(model):
        torch.testing.assert_close(model(x_BD), expected, rtol=0, atol=0)
    assert nvtx_calls == _CALLS[level]

    model(x_BD)
    assert nvtx_calls == _CALLS[level]


def test_state_dict_and_hooks_are_as_before_after_removal(nvtx_calls: list[str]) -> None:
    model = _Model()
    names = list(model.state_dict())
    handle = attach_nvtx(model)
    assert list(model.state_dict()) == names
    handle.remove()
    handle.remove()

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks_always_called for module in model.modules())
    assert nvtx_calls == []


@pytest.mark.parametrize("level", nvtx.LEVELS)
def test_a_forward_that_raises_leaves_push_and_pop_balanced(
    level: str, nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nvtx.LEVEL_SWITCH, level)
    model, error = _Model(), RuntimeError("from the second block")
    attach_nvtx(model)
    with pytest.raises(RuntimeError) as caught:
        model(torch.ones(1, 2), error)

    assert caught.value is error
    assert error.__context__ is None
    pushes = [call for call in nvtx_calls if call.startswith("+")]
    assert nvtx_calls.count("-") == len(pushes)
    assert nvtx_calls[-1] == "-"


@pytest.mark.parametrize("prepend", [False, True])
def test_a_foreign_pre_hook_that_raises_leaves_push_and_pop_balanced(prepend: bool, nvtx_calls: list[str]) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("from a hook")

    model = _Model()
    attach_nvtx(model)
    model.register_forward_pre_hook(fail, prepend=prepend)
    with pytest.raises(RuntimeError, match="from a hook"):
        model(torch.ones(1, 2))

    assert nvtx_calls == ([] if prepend else ["+_Model", "-"])


def test_switched_off_registers_nothing(nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.SWITCH, "0")
    model = _Model()
    attach_nvtx(model)
    model(torch.ones(1, 2))

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert nvtx_calls == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_level_leaves_a_compiled_block_whole(nvtx_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvtx.LEVEL_SWITCH, "verbose")
    model = _Model()
    for block in model.layers:
        block.forward = torch.compile(block.forward, fullgraph=True, backend="eager")
    attach_nvtx(model)
    expected = _Model()
    expected.load_state_dict(model.state_dict())
    x = torch.ones(1, 2)
    assert torch.equal(model(x), expected(x))
    assert nvtx_calls == ["+_Model", "+layers.0", "-", "+layers.1", "-", "+head", "-", "-"]
    torch._dynamo.reset()
