"""Resume a training run from the checkpoints in its run folder."""

import tomllib
from typing import TYPE_CHECKING

from cli.progress import say
from config.train import TrainConfig
from transformerlm.utils.errors import CheckpointError

if TYPE_CHECKING:
    from transformerlm.training import Checkpoint, TrainingRun


def resume_newest(run: "TrainingRun", config: TrainConfig) -> list[str]:
    """Load the newest intact checkpoint, if any; return one sentence per change since it was saved.

    Damaged newer checkpoints are logged and set aside, but only once the run has resumed
    without them.
    """
    from transformerlm.checkpoint.folder import checkpoint_folders
    from transformerlm.checkpoint.integrity import DamagedCheckpointError
    from transformerlm.distributed.group import restarts

    how = config.training.resume
    if how == "never" and not restarts() and checkpoint_folders(run.store.folder):
        raise CheckpointError(
            f"{run.store.folder}: holds checkpoints already; choose another logging.run_name, "
            "or set training.resume to auto to continue from them"
        )
    damaged: list[DamagedCheckpointError] = []
    newest = run.store.newest(damaged)
    if newest is None:
        return []
    differing = run.resume(newest, force=how == "force")
    if differing:
        say(f"{newest.path}: is of another run, and is continued as asked: {'; '.join(differing)}")
    for error in damaged:
        aside = run.store.set_aside(error.folder)
        say(f"{error.problem}; kept as {aside.name}, going on from {newest.path.name}, the newest that is whole")
    return _changes(newest, run, config)


def _changes(checkpoint: "Checkpoint", run: "TrainingRun", config: TrainConfig) -> list[str]:
    """Return one sentence per change of settings, learning rate and environment."""
    from transformerlm.training.state import environment

    changes: list[str] = []
    try:
        tables = tomllib.loads((checkpoint.path / "config.toml").read_text(encoding="utf-8"))
        former = TrainConfig.model_validate(tables)
    except ValueError as error:  # invalid TOML, or settings of another version
        return [f"the checkpoint's settings cannot be compared: {' '.join(str(error).split())}"]
    old, new = former.model_dump(mode="json"), config.model_dump(mode="json")
    for table, settings in new.items():
        for key, value in settings.items():
            if value != old[table][key] and (table, key) != ("training", "resume"):
                changes.append(f"{table}.{key} was {old[table][key]!r} and is {value!r}")
    if any(change.startswith(("schedule.", "training.steps ")) for change in changes):
        changes.append(_schedule_change(run, former, config))
    saved = checkpoint.run_state()["environment"]
    changes += [
        f"{key} was {saved[key]} and is {value}: results may differ in the last digits"
        for key, value in environment(run.trainer).items()
        if key in saved and saved[key] != value
    ]
    return changes


def _schedule_change(run: "TrainingRun", former: TrainConfig, config: TrainConfig) -> str:
    """Describe how the learning rate changes where the run resumes."""
    from transformerlm.training.schedule import learning_rate

    step = run.progress.step
    before = learning_rate(max(1, step), former.schedule, former.training.steps)
    after, last = run.trainer.learning_rate(step + 1), run.trainer.learning_rate(config.training.steps)
    moves = "rises" if after > before else "falls" if after < before else "stays"
    return (
        f"the {config.schedule.name} schedule is that of a run of {config.training.steps} steps: the learning rate "
        f"{moves} from {before:.3g} at step {step} to {after:.3g} at step {step + 1}, and ends at {last:.3g}"
    )
