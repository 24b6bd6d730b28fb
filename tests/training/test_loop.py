"""The loop: what it records, when it validates and saves, and that stopping changes nothing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformerlm.hparams import CheckpointHparams, TrainLoggingHparams, ValidationHparams
from transformerlm.models import TransformerLM
from transformerlm.training import Checkpoint, TrainingRun
from transformerlm.training.loop import DivergenceError, OtherRunError
from transformerlm.utils.errors import CheckpointError

Record = dict[str, Any]


class FailsAt(nn.Module):
    """A model whose training passes number `steps` (from 1) give NaN."""

    def __init__(self, model: nn.Module, *steps: int) -> None:
        super().__init__()
        self.model = model
        self.steps = steps
        self.passes = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.passes += self.training
        return self.model(ids) * (math.nan if self.training and self.passes in self.steps else 1.0)


def of(records: list[Record], event: str) -> list[Record]:
    return [record for record in records if record["event"] == event]


def steps_of(records: list[Record], event: str) -> list[int]:
    return [record["step"] for record in of(records, event)]


def stop_after(step: int) -> tuple[Callable[[], bool], Callable[[TrainingRun], list[Record]]]:
    """Return a `should_stop`, and a function that runs to it: the request comes while step `step` is recorded."""
    asked: list[bool] = []

    def run(training: TrainingRun) -> list[Record]:
        records = []
        for record in training.run():
            records.append(record)
            if record["event"] == "train_step" and record["step"] == step:
                asked.append(True)
        return records

    return lambda: bool(asked), run


def test_records_come_at_their_intervals(make_run: Callable[..., TrainingRun]) -> None:
    run = make_run(
        run={
            "logging": TrainLoggingHparams(interval=5, activation_norm_interval=4, weight_norm_interval=6),
            "validation": ValidationHparams(interval=3),
            "checkpoint": CheckpointHparams(interval=5),
        }
    )
    records = list(run.run())
    assert steps_of(records, "train_step") == [1, 4, 5, 6, 8, 10, 12]
    assert steps_of(records, "validation") == [3, 5, 6, 9, 10, 12]  # every checkpoint knows its loss
    assert steps_of(records, "checkpoint") == [5, 10, 12]
    assert records[-1] == {"event": "train_end", "step": 12, "finished": True}
    for record in of(records, "train_step"):
        assert record.keys() >= {"metrics.loss", "metrics.lr", "metrics.grad_l2_norm", "metrics.epoch"}
        assert record["metrics.tokens_per_second"] > 0
        assert record["metrics.seconds_left"] >= 0
        assert ("metrics.activation_norm.layers.1" in record) == (record["step"] % 4 == 0)
        assert ("metrics.weight_norm.ln_final.weight" in record) == (record["step"] % 6 == 0)
    for record in of(records, "validation"):
        loss = record["metrics.valid_loss"]
        assert record["metrics.valid_perplexity"] == pytest.approx(math.exp(loss))
        assert record["metrics.valid_bits_per_byte"] == pytest.approx(loss / math.log(2) / 2.0)
    assert not any(module._forward_hooks for module in run.trainer.model.modules())


def test_the_utilisation_is_given_where_the_peak_is_known(
    make_run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformerlm.training.loop.peak_flops", lambda _device: 100.0)
    record = of(list(make_run(steps=3).run()), "train_step")[0]
    assert record["metrics.mfu"] == pytest.approx(record["metrics.tokens_per_second"] / 100)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.suffix == ".safetensors"}


@pytest.mark.parametrize(
    "way", [{}, {"dtype": torch.bfloat16}, {"mask_after": 7}], ids=["float32", "bfloat16", "masked"]
)
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_stopping_and_continuing_is_not_stopping(
    step: int, way: dict[str, Any], make_run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    torch.manual_seed(0)  # the global generator's state is in the checkpoint too
    whole = list(make_run("whole", **way).run())
    should_stop, run_to_it = stop_after(step)
    torch.manual_seed(0)
    first = run_to_it(make_run("parts", **way, run={"should_stop": should_stop}))
    assert first[-1] == {"event": "train_end", "step": step, "finished": False}

    torch.rand(7)  # other work in between
    second = make_run("parts", **way)
    newest = second.store.newest()
    assert newest is not None
    assert newest.step == step
    second.resume(newest)
    rest = list(second.run())
    for event, key in (("train_step", "metrics.loss"), ("train_step", "metrics.grad_l2_norm"), ("train_step", "step")):
        assert [r[key] for r in of(first + rest, event)] == [r[key] for r in of(whole, event)]
    losses = {r["step"]: r["metrics.valid_loss"] for r in of(first + rest, "validation")}
    assert losses.items() >= {r["step"]: r["metrics.valid_loss"] for r in of(whole, "validation")}.items()
    final = "step_00000012"
    assert files(tmp_path / "parts" / final) == files(tmp_path / "whole" / final)


def test_a_finished_run_does_nothing_more(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    list(make_run().run())
    again = make_run()
    again.resume(Checkpoint.open(tmp_path / "run"))
    assert list(again.run()) == [{"event": "train_end", "step": 12, "finished": True}]


def test_a_request_before_the_first_step_saves_nothing(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = make_run(run={"should_stop": lambda: True})
    assert list(run.run()) == [{"event": "train_end", "step": 0, "finished": False}]
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_identity_is_refused(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    list(make_run(steps=3).run())
    other = make_run(steps=3, run={"identity": {"data": "abc", "seed": 1, "new": True}})
    with pytest.raises(OtherRunError, match="seed was 0 and is 1; new was None and is True; choose another"):
        other.resume(Checkpoint.open(tmp_path / "run"))
    assert other.progress.step == 0
    assert other.resume(Checkpoint.open(tmp_path / "run"), force=True) == [
        "seed was 0 and is 1",
        "new was None and is True",
    ]
    assert other.progress.step == 3
    with pytest.raises(OtherRunError, match="seed was 0 and is None; choose another"):
        make_run(steps=3, run={"identity": {"data": "abc"}}).resume(Checkpoint.open(tmp_path / "run"))


def test_a_checkpoint_of_no_run_cannot_be_continued(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = make_run(steps=3)
    state = {"step": 0, "best_step": None}  # as an imported model has it
    run.store.save(model=run.trainer.model.state_dict(), optimizer=run.trainer.state(), state=state)
    with pytest.raises(CheckpointError, match=r"is no checkpoint of a training run; .* name it as training\.init_from"):
        run.resume(Checkpoint.open(tmp_path / "run"))


def test_the_best_checkpoint_is_kept_besides_the_newest(
    make_run: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losses = iter([3.0, 1.0, 2.0, math.nan, 1.5, 4.0])
    run = make_run(keep_last=1, run={"checkpoint": CheckpointHparams(interval=2), "validation": ValidationHparams()})
    monkeypatch.setattr(run.trainer, "evaluate", lambda _batches: next(losses))
    records = list(run.run())
    assert [r["best_step"] for r in of(records, "checkpoint")] == [2, 4, 4, 4, 4, 4]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_00000004", "step_00000012"]
    assert (run.progress.best_step, run.progress.best_loss) == (4, 1.0)


def test_skipped_steps_are_recorded_and_counted_in_a_row(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM]
) -> None:
    run = make_run(model=FailsAt(make_model(), 2, 3, 5), max_nonfinite_steps=3)
    records = list(run.run())
    assert steps_of(records, "skipped_step") == [2, 3, 5]
    assert all(math.isnan(record["metrics.loss"]) for record in of(records, "skipped_step"))
    assert run.progress.nonfinite_steps == 0
    assert of(records, "train_end")[0]["finished"]


def test_the_run_stops_after_a_few_bad_steps_in_a_row(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM], tmp_path: Path
) -> None:
    run = make_run(model=FailsAt(make_model(), *range(6, 20)), max_nonfinite_steps=3)
    with pytest.raises(DivergenceError, match="step 8: loss or gradient was not finite 3 times in a row; lower"):
        list(run.run())
    assert Checkpoint.open(tmp_path / "run").step == 4
    assert all(parameter.isfinite().all() for parameter in run.trainer.model.parameters())


def test_bad_steps_in_a_row_are_counted_across_a_restart(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM], tmp_path: Path
) -> None:
    first = make_run(steps=4, model=FailsAt(make_model(), 3, 4), max_nonfinite_steps=3)
    list(first.run())
    second = make_run(steps=8, model=FailsAt(make_model(), 1), max_nonfinite_steps=3)
    second.resume(Checkpoint.open(tmp_path / "run"))
    with pytest.raises(DivergenceError, match="step 5"):
        list(second.run())
