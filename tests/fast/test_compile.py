"""When a run is compiled; and that a compiled run has the numbers of a plain one and is compiled once."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from transformerlm.distributed.group import World
from transformerlm.fast import compile as compiling
from transformerlm.fast.compile import Compilation, decide, decide_together
from transformerlm.hparams import ModelHparams, OptimizerHparams, ScheduleHparams, TrainingHparams
from transformerlm.models.build import build_model
from transformerlm.training import Trainer
from transformerlm.training.state import trainer_state
from transformerlm.utils.errors import ConfigError

CPU = torch.device("cpu")
FOREVER = 1e30
SHAPE = ModelHparams(vocab_size=64, context_length=16, d_model=32, num_layers=10, num_heads=2, d_ff=64, qkv_bias=True)


def make_trainer(*, mask_after: int | None = None, **settings: object) -> Trainer:
    return Trainer(
        build_model(SHAPE, seed=0),
        optimizer=OptimizerHparams(),
        schedule=ScheduleHparams(max_learning_rate=1e-2, min_learning_rate=1e-3, warmup_iters=2),
        training=TrainingHparams(**{"steps": 6, "batch_size": 4, "device": "cpu", **settings}),
        device=CPU,
        dtype=torch.float32,
        mask_after=mask_after,
    )


def batch(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 64, (rows, 17), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def losses(trainer: Trainer, steps: range) -> list[float]:
    """Train and validate on batches of other sizes than those of training, the last one short."""
    found = []
    for step in steps:
        found.append(trainer.step(step, batch(step)).loss)
        found.append(trainer.evaluate([batch(100, rows=3), batch(101, rows=3), batch(102, rows=1)]))
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_compiles_long_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_failure", str)
    monkeypatch.setattr(compiling, "_missing_compiler", lambda _device: "")
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "unused")
    assert decide("auto", torch.device(device), FOREVER) == Compilation(active=True)
    assert decide("auto", torch.device(device), 1e9) == Compilation(active=False)
    assert decide(False, torch.device(device), FOREVER) == Compilation(active=False)
    assert decide(True, torch.device(device), 0.0) == Compilation(active=True)
    assert decide("auto", torch.device("mps"), FOREVER) == Compilation(active=False)


def test_without_a_compiler_auto_goes_on_and_true_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    missing = "there is no C++ compiler here (g++)"
    assert decide("auto", CPU, FOREVER) == Compilation(active=False, problem=missing)
    with pytest.raises(ConfigError, match=r"training.compile: is true, but there is no C\+\+ compiler here"):
        decide(True, CPU, 0.0)


class OneOfTwo(World):
    """A process beside another one, which asks for `other` where this one agrees to a number."""

    other: ClassVar[int]

    def agree(self, value: int) -> int:
        return max(value, self.other)


@pytest.mark.parametrize("other", [0, 1])
def test_processes_compile_all_or_none(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_find_problem", lambda _device: "")
    monkeypatch.setattr(OneOfTwo, "other", other, raising=False)
    found = decide_together("auto", CPU, FOREVER, OneOfTwo())
    assert found.active == (other == 0)
    assert found.problem == ("another process of this run does not compile" if other else "")
    assert decide_together("auto", CPU, 0.0, OneOfTwo()) == Compilation(active=False)


@pytest.mark.parametrize("named", [True, False])
def test_the_cache_is_the_users_unless_named(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "elsewhere")
    if not named:
        monkeypatch.delenv(compiling.CACHE_VARIABLE)
    compiling._choose_cache_folder()
    folder = compiling.os.environ[compiling.CACHE_VARIABLE]
    assert folder == ("elsewhere" if named else str(tmp_path / "transformerlm/inductor"))
    assert (tmp_path / "transformerlm").exists() == (not named)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mask_after", [None, 7], ids=["", "masked"])
def test_a_compiled_run_equals_a_plain_one_and_is_compiled_once(
    mask_after: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = torch._dynamo.utils.counters
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path))
    expected = losses(make_trainer(compile=False, mask_after=mask_after), range(1, 7))

    torch._dynamo.reset()
    trainer = make_trainer(compile=True, mask_after=mask_after)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.warm_up(batch(0))
    assert all(map(torch.equal, trainer.model.state_dict().values(), before.values()))
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        found = losses(trainer, range(1, 4))
        saved = copy.deepcopy((trainer.model.state_dict(), trainer_state(trainer)))
        found += losses(trainer, range(4, 7))
    assert found == pytest.approx(expected, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs  # ten blocks share one graph

    # A resumed run: a new process would begin with nothing but the files.
    torch._dynamo.reset()
    counters.clear()
    resumed = make_trainer(compile=True, mask_after=mask_after)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1]["optimizer"])
    resumed.warm_up(batch(0))
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    with torch.compiler.set_stance("fail_on_recompile"):
        assert losses(resumed, range(4, 7)) == found[6:]  # to the last bit
    torch._dynamo.reset()
