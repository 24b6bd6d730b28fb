"""From the names in a config to one logger."""

from pathlib import Path

from logger.base import Logger
from logger.console_logger import ConsoleLogger
from logger.jsonl_logger import JsonlLogger
from logger.multi import MultiLogger
from logger.noop import NoopLogger
from logger.wandb_logger import WandbLogger
from transformerlm.hparams import LoggingHparams, WandbHparams

METRICS_FILE = "metrics.jsonl"


def make_logger(
    logging: LoggingHparams, wandb: WandbHparams, *, run_dir: Path | None, resume_step: int | None = None
) -> Logger:
    """Build the logger of a run: the backends that `logging` names, and `metrics.jsonl` wherever there is a run folder.

    Nothing is created on disk before the logger's `start`. `resume_step` is the step a training run
    continues from, 0 if it begins anew, None if its records have no order of steps (see `JsonlLogger`).

    Raises:
        MissingDependencyError: the wandb backend is asked for and wandb is not installed.
    """
    loggers: list[Logger] = []
    if run_dir is not None:  # first, so that it holds a record even if another backend fails on it
        loggers.append(JsonlLogger(run_dir / METRICS_FILE, resume_step=resume_step))
    if "console" in logging.backend:
        loggers.append(ConsoleLogger(format=logging.format))
    if "wandb" in logging.backend:
        loggers.append(
            WandbLogger(
                entity=wandb.entity,
                project=wandb.project,
                run_name=logging.run_name,
                run_dir=run_dir,
                architecture=logging.architecture,
                dataset=logging.dataset,
                mode=wandb.mode,
            )
        )
    if not loggers:
        return NoopLogger()
    return loggers[0] if len(loggers) == 1 else MultiLogger(loggers)
