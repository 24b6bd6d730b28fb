"""The Weights & Biases backend: history, config, checkpoints and tokenizer files in a wandb run.

wandb is an optional package, imported when the logger is built. Its own messages and its capture of
the console are switched off, so that stdout stays pure JSON; where the run is found goes to stderr.
"""

import re
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, final

from logger.records import to_plain
from transformerlm.utils.errors import ConfigError, MissingDependencyError
from transformerlm.utils.files import atomic_write_text

if TYPE_CHECKING:
    import wandb

RUN_ID_FILE = "wandb_run_id"
WandbMode = Literal["online", "offline", "disabled"]


@final
class WandbLogger:
    """Logs to the wandb run whose id lies in `run_dir`, so that a resumed run continues it.

    Args:
        entity: the team or user; None for the account's default.
        project: the project; None for wandb's default.
        run_name: the name shown for the run.
        run_dir: the run folder, which holds `wandb_run_id` and wandb's own files; None for neither.
        architecture: added to the config under this name.
        dataset: added to the config under this name.
        mode: "online", "offline" (upload later with `wandb sync`), "disabled", or None to leave the
            choice to wandb's own settings (`WANDB_MODE`).
        resume_id: continue the run of this id instead of the one in `run_dir`.

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(
        self,
        *,
        entity: str | None,
        project: str | None,
        run_name: str,
        run_dir: Path | None,
        architecture: str,
        dataset: str,
        mode: WandbMode | None = None,
        resume_id: str | None = None,
    ) -> None:
        self._wandb = _import_wandb()
        self._entity = entity
        self._project = project
        self._run_name = run_name
        self._run_dir = run_dir
        self._facts = {"architecture": architecture, "dataset": dataset}
        self._mode: WandbMode | None = mode
        self._resume_id = resume_id
        self._run: wandb.Run | None = None
        self._row = -1  # the newest row of the history,
        self._step: int | None = None  # and the step that it belongs to

    def start(self, config: Mapping[str, object]) -> None:
        """Begin the wandb run, or continue it, with `config` and the name of architecture and dataset.

        Raises:
            ConfigError: wandb refuses: nobody is logged in, a name is not valid, no connection.
        """
        if self._run_dir is not None:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        try:
            run = self._wandb.init(
                entity=self._entity,
                project=self._project,
                name=self._run_name,
                id=self._resume_id or _stored_run_id(self._run_dir),
                resume="allow",
                dir=self._run_dir,
                mode=self._mode,
                config=cast(dict[str, Any], to_plain({**config, **self._facts})),
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.Error as error:
            raise ConfigError(
                f'wandb: {error} (or log without it: wandb.mode = "offline", or another logging.backend)'
            ) from error
        # The charts' x axis. It is not wandb's own row number, which only ever grows: see `log`.
        run.define_metric("*", step_metric="step")
        if not run.offline and run.url:  # a disabled run has none
            print(f"wandb: {run.url}", file=sys.stderr)
        self._run = run
        self._row = run.starting_step - 1

    def log(self, record: Mapping[str, object]) -> None:
        """Add `record` to the history, under its keys as they are.

        Records of one step share a row, whose number is that step if it can be. But wandb drops what
        is logged to a row before its newest, as when a resumed run repeats steps: such a record, and
        one without a step, gets the next row. The x axis does not mind, for the rows hold `step`.

        Raises:
            TypeError: a value cannot be written as JSON.
        """
        assert self._run is not None, "log() needs start() first"
        values = cast(dict[str, Any], to_plain(record))
        step = values.get("step")
        if step is None or step != self._step:
            self._row = max(self._row + 1, 0 if step is None else step)
            self._step = step
        self._run.log(values, step=self._row)

    def log_artifact(self, path: Path, *, name: str, kind: str) -> None:
        """Upload a file, or a folder with all it holds, as an artifact of type `kind`.

        wandb copies the files first, so that they may be deleted at once.
        """
        assert self._run is not None, "log_artifact() needs start() first"
        artifact = self._wandb.Artifact(_artifact_name(name), type=kind)
        folder = path if path.is_dir() else path.parent
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:  # one by one: `add_dir` would announce itself amid the progress bar
            if not file.is_dir():
                artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
        self._run.log_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """Upload what is left and close the run, as failed if `exit_code` is not 0.

        Of an offline run, print the command that uploads it: all its parts in order, if it was resumed.
        """
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)
            if run.offline:
                part = Path(run.dir).parent
                folder = part if self._run_dir is None else part.parent  # the run folder holds parts of this run only
                print(f"wandb: offline, upload with: wandb sync {shlex.quote(str(folder))}", file=sys.stderr)


def _import_wandb() -> ModuleType:
    try:
        import wandb
        import wandb.sdk  # a folder `wandb` in the working directory imports as well, but has no sdk
    except ImportError as error:
        raise MissingDependencyError(
            "the wandb backend needs the package wandb: uv sync --extra wandb (or: pip install 'transformerlm[wandb]')"
        ) from error
    return wandb


def _stored_run_id(run_dir: Path | None) -> str:
    """Return the id in the run folder's file, which is made with a new id if it is not there."""
    file = None if run_dir is None else run_dir / RUN_ID_FILE
    if file is not None and file.exists():
        return file.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    if file is not None:
        atomic_write_text(file, run_id + "\n")
    return run_id


def _artifact_name(name: str) -> str:
    """Replace what wandb does not allow in the name of an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
