"""How a training command goes on from what its run folder holds."""

from typing import TYPE_CHECKING, Any, Literal

from cli.progress import say
from transformerlm.utils.errors import CheckpointError

if TYPE_CHECKING:
    from transformerlm.training import TrainingRun


def resume_newest(run: "TrainingRun", how: Literal["auto", "never", "force"]) -> int:
    """Load the newest whole checkpoint, if the run folder has one; return the step to continue from.

    `how` is `training.resume`. Newer ones that are damaged are named and set aside, but only when the run is sure to
    go on without them.
    """
    from transformerlm.distributed.group import restarts
    from transformerlm.training.checkpoint import checkpoint_folders
    from transformerlm.training.manifest import DamagedCheckpointError

    if how == "never" and not restarts() and checkpoint_folders(run.store.folder):
        raise CheckpointError(
            f"{run.store.folder}: holds checkpoints already; choose another logging.run_name, "
            "or set training.resume to auto to continue from them"
        )
    damaged: list[DamagedCheckpointError] = []
    newest = run.store.newest(damaged)
    if newest is None:
        return 0
    differing = run.resume(newest, force=how == "force")
    if differing:
        say(f"{newest.path}: is of another run, and is continued as asked: {'; '.join(differing)}")
    for error in damaged:
        aside = run.store.set_aside(error.folder)
        say(f"{error.problem}; kept as {aside.name}, going on from {newest.path.name}, the newest that is whole")
    _compare_environment(newest.run_state()["environment"], run.trainer.environment())
    return run.progress.step


def _compare_environment(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Say what is not as it was: the run goes on, but not to the same last digit."""
    changes = [
        f"{key} was {saved.get(key)} and is {value}" for key, value in present.items() if saved.get(key) != value
    ]
    if changes:
        say(f"the checkpoint is from another environment ({'; '.join(changes)}): results may differ in the last digits")
