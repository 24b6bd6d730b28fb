"""The loop: what it records, when it validates and saves, and that stopping changes nothing."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformerlm.hparams import CheckpointHparams, TrainLoggingHparams, ValidationHparams
from transformerlm.inference.generate import generate
from transformerlm.models import TransformerLM
from transformerlm.training import BatchLoader, Checkpoint, TrainingRun
from transformerlm.training.state import OtherRunError, trainer_state
from transformerlm.training.step_result import StepResult
from transformerlm.training.watch import DivergenceError
from transformerlm.utils.errors import CheckpointError

Record = dict[str, Any]
CPU = torch.device("cpu")


def spoiled(model: TransformerLM, factor: Callable[[int], float]) -> TransformerLM:
    """Return `model`, whose logits are multiplied by `factor` of the training pass, counted from 1."""
    passes = itertools.count(1)
    model.ln_final.register_forward_hook(lambda m, _ins, out: out * factor(next(passes)) if m.training else out)
    return model


def fails_at(model: TransformerLM, *steps: int) -> TransformerLM:
    """Return `model`, whose training passes number `steps` give NaN."""
    return spoiled(model, lambda step: math.nan if step in steps else 1.0)


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
    assert records[-1].items() >= {"event": "train_end", "step": 12, "finished": True}.items()
    elapsed = [record["metrics.elapsed_seconds"] for record in records]
    assert elapsed[0] > 0
    assert elapsed == sorted(elapsed)
    assert all(record["metrics.tokens_seen"] == record["step"] * 4 * 16 for record in records)
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
    peaks = {torch.float32: 100.0, torch.bfloat16: 800.0}
    monkeypatch.setattr("transformerlm.training.loop.peak_flops", lambda _device, dtype: peaks[dtype])
    for dtype, peak in peaks.items():
        record = of(list(make_run(str(dtype), steps=3, dtype=dtype).run()), "train_step")[0]
        assert record["metrics.mfu"] == pytest.approx(record["metrics.tokens_per_second"] / peak)


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
    assert first[-1].items() >= {"event": "train_end", "step": step, "finished": False}.items()

    torch.rand(7)  # other work in between
    second = make_run("parts", **way)
    newest = second.store.newest()
    assert newest is not None
    assert newest.step == step
    second.resume(newest)
    rest = list(second.run())
    assert rest[0]["metrics.elapsed_seconds"] > of(first, "train_step")[-1]["metrics.elapsed_seconds"]
    assert rest[-1]["metrics.tokens_seen"] == whole[-1]["metrics.tokens_seen"] == 12 * 4 * 16
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
    (record,) = again.run()
    assert record.items() >= {"event": "train_end", "step": 12, "finished": True}.items()


def test_a_request_before_the_first_step_saves_nothing(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = make_run(run={"should_stop": lambda: True})
    (record,) = run.run()
    assert record.items() >= {"event": "train_end", "step": 0, "finished": False}.items()
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


def test_a_checkpoint_from_before_a_setting_existed_is_of_the_same_run(
    make_run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    defaults = {"model.norm_eps": 1e-5, "model.qkv_bias": False, "model.rope_scaling": None}
    list(make_run(steps=3, run={"identity": {"data": "abc", "model.qkv_bias": None}}).run())
    old = Checkpoint.open(tmp_path / "run")
    again = make_run(steps=3, run={"identity": {"data": "abc"} | defaults})
    assert again.resume(old) == []
    other = make_run(steps=3, run={"identity": {"data": "abc"} | defaults | {"model.norm_eps": 1e-6}})
    with pytest.raises(OtherRunError, match=r"another run: model\.norm_eps was None and is 1e-06; choose"):
        other.resume(old)


def test_tokens_of_an_older_checkpoint_are_counted_by_its_steps(
    make_run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    run = make_run(steps=4)
    list(run.run())
    progress = {
        key: value for key, value in vars(run.progress).items() if key not in ("tokens_seen", "elapsed_seconds")
    }
    state = {"step": 4, "progress": progress, "identity": dict(run.identity), "environment": {}}
    run.store.save(model=run.trainer.model.state_dict(), optimizer=trainer_state(run.trainer), state=state)
    again = make_run(steps=5)
    again.resume(Checkpoint.open(tmp_path / "run"))
    assert list(again.run())[-1]["metrics.tokens_seen"] == 5 * 4 * 16


def test_a_checkpoint_of_no_run_cannot_be_continued(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = make_run(steps=3)
    state = {"step": 0, "best_step": None}  # as an imported model has it
    run.store.save(model=run.trainer.model.state_dict(), optimizer=trainer_state(run.trainer), state=state)
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
    run = make_run(model=fails_at(make_model(), 2, 3, 5), max_nonfinite_steps=3)
    records = list(run.run())
    assert steps_of(records, "skipped_step") == [2, 3, 5]
    assert all(math.isnan(record["metrics.loss"]) for record in of(records, "skipped_step"))
    assert run.progress.nonfinite_steps == 0
    assert of(records, "train_end")[0]["finished"]


def test_the_run_stops_after_a_few_bad_steps_in_a_row(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM], tmp_path: Path
) -> None:
    run = make_run(model=fails_at(make_model(), *range(6, 20)), max_nonfinite_steps=3)
    with pytest.raises(DivergenceError, match="step 8: loss or gradient was not finite 3 times in a row; lower"):
        list(run.run())
    assert Checkpoint.open(tmp_path / "run").step == 4
    assert all(parameter.isfinite().all() for parameter in run.trainer.model.parameters())


def test_a_run_of_the_core_alone_resumes_to_the_last_bit_and_generates(
    make_run: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    whole = make_run("whole", fast=False)
    list(whole.run())
    should_stop, run_to_stop = stop_after(6)
    run_to_stop(make_run("run", fast=False, run={"should_stop": should_stop}))
    resumed = make_run("run", fast=False)
    resumed.resume(Checkpoint.open(tmp_path / "run"))
    assert resumed.progress.step == 6
    list(resumed.run())
    models = [run.trainer.model for run in (whole, resumed)]
    assert all(map(torch.equal, *(model.state_dict().values() for model in models)))
    texts = [generate(model, torch.tensor([3, 5]), 20, temperature=0) for model in models]
    assert torch.equal(*texts)
    assert len(texts[0]) == 22


def test_bad_steps_in_a_row_are_counted_across_a_restart(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM], tmp_path: Path
) -> None:
    first = make_run(steps=4, model=fails_at(make_model(), 3, 4), max_nonfinite_steps=3)
    list(first.run())
    second = make_run(steps=8, model=fails_at(make_model(), 1), max_nonfinite_steps=3)
    second.resume(Checkpoint.open(tmp_path / "run"))
    with pytest.raises(DivergenceError, match="step 5"):
        list(second.run())


def test_a_model_without_any_gradient_ends_the_run(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM]
) -> None:
    run = make_run(model=spoiled(make_model(), lambda step: 0.0 if step >= 6 else 1.0), max_nonfinite_steps=3)
    with pytest.raises(
        DivergenceError, match=r"step 8: the model has collapsed .* \(loss 3\.6889, gradient norm 0, after 3 such steps"
    ):
        list(run.run())


class Told:
    """Stands in for `Trainer.step`: step n gives loss and gradient norm number n − 1, the last ones from then on."""

    def __init__(self, *numbers: tuple[float, float]) -> None:
        self.numbers = numbers

    def __call__(self, step: int, _batch: object) -> StepResult:
        loss, norm = self.numbers[min(step, len(self.numbers)) - 1]
        return StepResult(torch.tensor([loss, norm, float(math.isfinite(loss + norm))]), 0.1)


STUCK = math.log(40)


def run_told(make_run: Callable[..., TrainingRun], *numbers: tuple[float, float], **model: Any) -> list[Record]:
    run = make_run(max_nonfinite_steps=3, steps=12, **model)
    run.trainer.step = Told(*numbers)  # type: ignore[method-assign]
    return list(run.run())


@pytest.mark.parametrize(
    ("numbers", "step"),
    [
        ([(3.0, 1.0), (3.0, 0.0)], 4),
        ([(3.0, 1.0), (STUCK, 0.5)], 6),  # after the three steps of warm-up
        ([(9.0, 1.0), (9.0, 0.0), (9.0, math.nan)], 4),  # collapsed or not finite, in turn
    ],
    ids=["gradient zero", "equal logits", "both"],
)
def test_a_collapse_that_stays_finite_ends_the_run(
    numbers: list[tuple[float, float]], step: int, make_run: Callable[..., TrainingRun]
) -> None:
    with pytest.raises(DivergenceError, match=f"^step {step}: "):
        run_told(make_run, *numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        [(0.0, 0.0)],  # every token known: no gradient is left
        [(1e-6, 0.0)],
        [(3.0, 0.0), (3.0, 0.0), (3.0, 1e-20)] * 4,  # not in a row
        [(STUCK * (1 + 1e-5), 0.1)],
        [(STUCK, 0.1), (STUCK, 0.1), (STUCK, 0.1), (3.6, 0.1)],  # within the warm-up
    ],
)
def test_what_still_learns_or_has_nothing_left_to_learn_is_no_collapse(
    numbers: list[tuple[float, float]], make_run: Callable[..., TrainingRun]
) -> None:
    assert run_told(make_run, *numbers)[-1]["finished"]


def test_a_vocabulary_of_one_entry_or_a_single_trained_parameter_is_no_collapse(
    make_run: Callable[..., TrainingRun], make_model: Callable[..., TransformerLM]
) -> None:
    one = make_run("one", model=make_model(vocab_size=1), max_nonfinite_steps=3)
    one.loader = BatchLoader(np.zeros(2000, np.uint16), batch_size=4, context_length=16, seed=0, device=CPU)
    one.valid_batches = []
    one.trainer.evaluate = lambda _batches: 0.0  # type: ignore[method-assign]
    assert list(one.run())[-1]["finished"]
    model = make_model()
    model.requires_grad_(False)
    model.ln_final.weight.requires_grad_(True)
    assert list(make_run("frozen", model=model, max_nonfinite_steps=3).run())[-1]["finished"]
