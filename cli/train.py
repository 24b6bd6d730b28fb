"""`transformerlm-train`: token files to a trained model in a run folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.plots import plot_loss
from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command, stop_on_signals
from config.io import COMMAND_LINE, to_toml
from config.train import TrainConfig
from profiling import attach_nvtx
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import CheckpointError, ConfigError, DataError
from transformerlm.utils.files import atomic_write_text, exclusive

if TYPE_CHECKING:
    from transformerlm.training import TokenDataset, TrainingRun

EPILOG = """exit codes: 0 trained to the end, 2 a mistake to mend, 130 and 143 stopped by Ctrl-C and SIGTERM after
saving a checkpoint; the same command continues from it.
next: transformerlm-infer --checkpoint runs/NAME --prompt "Once upon a time"
"""


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(TrainConfig, _run, prog="transformerlm-train", epilog=EPILOG)


def _run(invocation: Invocation[TrainConfig]) -> int:
    # On one terminal, records and a live bar would overwrite each other.
    records_on_terminal = "console" in invocation.config.logging.backend and sys.stdout.isatty()
    origin = str(invocation.config_path or COMMAND_LINE)
    return train(invocation.config, origin=origin, show_bar=not records_on_terminal)


def train(config: TrainConfig, *, origin: str, show_bar: bool) -> int:
    """Train the model that `config` describes, from the newest checkpoint of its run folder if there is one.

    Returns the exit code. `origin` is where the configuration came from, for errors to name.
    """
    with stop_on_signals() as exit_code:
        train_data, valid_data = _open_data(config)
        model = _with_vocabulary(config.model, train_data, valid_data, origin=origin)
        config = config.model_copy(update={"model": model})
        run = _build_run(config, train_data, valid_data, should_stop=lambda: exit_code() is not None)
        first_step = _resume(run, config)
        if first_step >= config.training.steps:
            say(
                f"already trained to step {first_step}: nothing to do; raise training.steps to go on, "
                "or choose another logging.run_name to begin anew"
            )
            return EXIT_OK
        _announce(run, config, first_step, train_data)
        run_dir = config.training.runs_dir / config.logging.run_name
        code = _train_logged(run, first_step, config, run_dir, exit_code, show_bar=show_bar)
    say(f"loss curve: {plot_loss(run_dir)}")
    if run.progress.step < config.training.steps:
        say(f"stopped after step {run.progress.step} of {config.training.steps}; the same command continues")
    return code


def _train_logged(
    run: "TrainingRun",
    first_step: int,
    config: TrainConfig,
    run_dir: Path,
    exit_code: Callable[[], int | None],
    *,
    show_bar: bool,
) -> int:
    """Create the run folder, train, and send the records to the logging backends; return the exit code."""
    from logger import make_logger

    log = make_logger(config.logging, config.wandb, run_dir=run_dir, resume_step=first_step)
    code = 1  # what the logger is told if an exception ends the run
    with exclusive(run_dir):
        try:
            run.store.clean()
            atomic_write_text(run_dir / "config.toml", to_toml(config))
            log.start(config.model_dump(mode="json"))
            log.log_artifact(config.data.tokenizer, name=f"{config.logging.run_name}-tokenizer", kind="tokenizer")
            with progress_bar("training", enabled=show_bar) as update:
                show = _shower(update, config.training.steps)
                for record in run.run():
                    log.log(record)
                    show(record)
                    if record["event"] == "checkpoint":
                        name = f"{config.logging.run_name}-checkpoint"
                        log.log_artifact(Path(record["path"]), name=name, kind="model")
            finished = run.progress.step >= config.training.steps
            code = EXIT_OK if finished else exit_code() or EXIT_OK
        finally:
            log.finish(code)
    return code


def _build_run(
    config: TrainConfig, train_data: "TokenDataset", valid_data: "TokenDataset", *, should_stop: Callable[[], bool]
) -> "TrainingRun":
    """Build the parts of a run. Nothing is created on disk."""
    from transformerlm.models.build import build_model
    from transformerlm.models.flops import flops_per_token
    from transformerlm.training import BatchLoader, CheckpointStore, Trainer, TrainingRun
    from transformerlm.training.data import validation_windows
    from transformerlm.utils.devices import select_device, select_dtype, set_threads

    settings = config.training
    device = select_device(settings.device)
    set_threads(settings.threads)
    model = build_model(config.model, device=device, seed=settings.seed)
    attach_nvtx(model)
    windows = {"context_length": config.model.context_length, "device": device}
    return TrainingRun(
        trainer=Trainer(
            model,
            optimizer=config.optimizer,
            schedule=config.schedule,
            training=settings,
            device=device,
            dtype=select_dtype(settings.dtype, device),
        ),
        loader=BatchLoader(train_data.tokens, batch_size=settings.batch_size, seed=settings.seed, **windows),
        valid_batches=validation_windows(
            valid_data.tokens, windows=config.validation.windows, batch_size=config.validation.batch_size, **windows
        ),
        valid_bytes_per_token=valid_data.bytes_per_token(),
        store=CheckpointStore(
            settings.runs_dir / config.logging.run_name / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            config_toml=to_toml(config),
            tokenizer=config.data.tokenizer,
        ),
        identity=_identity(config, train_data),
        logging=config.logging,
        validation=config.validation,
        checkpoint=config.checkpoint,
        flops_per_token=flops_per_token(model),
        should_stop=should_stop,
    )


def _announce(run: "TrainingRun", config: TrainConfig, first_step: int, train_data: "TokenDataset") -> None:
    from transformerlm.utils.dtypes import dtype_name

    parameters = sum(parameter.numel() for parameter in run.trainer.model.parameters())
    tokens = config.training.steps * config.training.batch_size * config.model.context_length
    say(
        f"training {parameters:,} parameters for {config.training.steps:,} steps, {tokens:,} tokens "
        f"({tokens / train_data.info.num_tokens:.2f} epochs) on {run.trainer.device.type} in "
        f"{dtype_name(run.trainer.dtype)}; run folder {config.training.runs_dir / config.logging.run_name}"
    )
    if first_step:
        say(f"continuing after step {first_step}")


def _open_data(config: TrainConfig) -> "tuple[TokenDataset, TokenDataset]":
    """Open both token files; raise if they are not of one tokenizer, the one of `data.tokenizer`."""
    from transformerlm.tokenizer import Tokenizer
    from transformerlm.training import TokenDataset

    tokenizer = Tokenizer.load(config.data.tokenizer)
    datasets = [
        TokenDataset.open(path, context_length=config.model.context_length)
        for path in (config.data.train, config.data.valid)
    ]
    for dataset in datasets:
        if dataset.info.tokenizer_sha256 != tokenizer.sha256():
            raise DataError(
                f"{dataset.path}: was made by another tokenizer than {config.data.tokenizer}; "
                "make it again with transformerlm-make-data, or name its tokenizer as data.tokenizer"
            )
    return datasets[0], datasets[1]


def _with_vocabulary(model: ModelHparams, *datasets: "TokenDataset", origin: str) -> ModelHparams:
    """Take the vocabulary size from the data where it is unset; raise `ConfigError` where it is too small."""
    needed = datasets[0].info.vocab_size
    if model.vocab_size is None:
        return model.model_copy(update={"vocab_size": needed})
    if model.vocab_size < needed:
        raise ConfigError(
            f"{origin}: model.vocab_size: must be at least {needed}, the vocabulary of {datasets[0].path}, whose "
            f"largest id is {max(dataset.info.max_token_id for dataset in datasets)} (got {model.vocab_size}); "
            "leave it unset to take the data's"
        )
    return model


def _identity(config: TrainConfig, train_data: "TokenDataset") -> dict[str, Any]:
    return {
        "data": train_data.info.data_sha256,
        "tokenizer": train_data.info.tokenizer_sha256,
        "seed": config.training.seed,
        "batch_size": config.training.batch_size,
        **{f"model.{key}": value for key, value in config.model.model_dump().items()},
    }


def _resume(run: "TrainingRun", config: TrainConfig) -> int:
    """Load the newest checkpoint, if the run folder has one; return the step to continue from."""
    from transformerlm.utils.devices import fingerprint

    newest = run.store.newest()
    if newest is None:
        return 0
    if config.training.resume == "never":
        raise CheckpointError(
            f"{run.store.folder}: holds checkpoints already; choose another logging.run_name, "
            "or set training.resume to auto to continue from them"
        )
    run.resume(newest)
    _compare_environment(newest.run_state()["environment"], fingerprint(run.trainer.device))
    return run.progress.step


def _compare_environment(saved: dict[str, Any], present: dict[str, Any]) -> None:
    """Say what is not as it was: the run goes on, but not to the same last digit."""
    changes = [
        f"{key} was {saved.get(key)} and is {value}" for key, value in present.items() if saved.get(key) != value
    ]
    if changes:
        say(f"the checkpoint is from another environment ({'; '.join(changes)}): results may differ in the last digits")


def _shower(update: Update, steps: int) -> Callable[[dict[str, Any]], None]:
    """Return a function that shows records on the progress bar."""
    words = {"loss": "", "valid": ""}

    def show(record: dict[str, Any]) -> None:
        if record["event"] == "train_step":
            words["loss"] = (
                f"step {record['step']:,}/{steps:,}  loss {record['metrics.loss']:.3f}  "
                f"{record['metrics.tokens_per_second']:,.0f} tokens/s"
            )
        elif record["event"] == "validation":
            words["valid"] = f"  validation {record['metrics.valid_loss']:.3f}"
        elif record["event"] == "skipped_step":
            say(f"step {record['step']}: skipped, its loss or gradient was not finite")
        update(record["step"] / steps, words["loss"] + words["valid"])

    return show


if __name__ == "__main__":
    sys.exit(main())
