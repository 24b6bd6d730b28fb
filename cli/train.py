"""`transformerlm-train`: token files to a trained model in a run folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.plots import plot_loss
from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command, stop_on_signals
from config.io import to_toml
from config.train import TrainConfig
from profiling import attach_nvtx, nvtx
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import CheckpointError, ConfigError, DataError
from transformerlm.utils.files import atomic_write_text

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
    return train(invocation.config, show_bar=not records_on_terminal)


def train(config: TrainConfig, *, show_bar: bool) -> int:
    """Train the model that `config` describes, from the newest checkpoint of its run folder if there is one.

    Returns the exit code.
    """
    with stop_on_signals() as exit_code:
        run, first_step, config = prepare(config, should_stop=lambda: exit_code() is not None)
        if first_step >= config.training.steps:
            say(
                f"already trained to step {first_step}: nothing to do; raise training.steps to go on, "
                "or choose another logging.run_name to begin anew"
            )
            return EXIT_OK
        code = _train_logged(run, first_step, config, exit_code, show_bar=show_bar)
    say(f"loss curve: {plot_loss(config.training.runs_dir / config.logging.run_name)}")
    if run.progress.step < config.training.steps:
        say(f"stopped after step {run.progress.step} of {config.training.steps}; the same command continues")
    return code


def _train_logged(
    run: "TrainingRun", first_step: int, config: TrainConfig, exit_code: Callable[[], int | None], *, show_bar: bool
) -> int:
    """Create the run folder, train, and send the records to the logging backends; return the exit code."""
    from logger import make_logger

    run_dir = config.training.runs_dir / config.logging.run_name
    log = make_logger(config.logging, config.wandb, run_dir=run_dir, resume_step=first_step)
    atomic_write_text(run_dir / "config.toml", to_toml(config))
    code = 1  # what the logger is told if an exception ends the run
    try:
        log.start(config.model_dump(mode="json"))
        log.log_artifact(config.data.tokenizer, name=f"{config.logging.run_name}-tokenizer", kind="tokenizer")
        with progress_bar("training", enabled=show_bar) as update:
            show = _shower(update, config.training.steps)
            for record in run.run():
                log.log(record)
                show(record)
                if record["event"] == "checkpoint":
                    log.log_artifact(Path(record["path"]), name=f"{config.logging.run_name}-checkpoint", kind="model")
        finished = run.progress.step >= config.training.steps
        code = EXIT_OK if finished else exit_code() or EXIT_OK
    finally:
        log.finish(code)
    return code


def prepare(config: TrainConfig, *, should_stop: Callable[[], bool]) -> "tuple[TrainingRun, int, TrainConfig]":
    """Check the inputs and build the run; return it, the step it continues from, and the resolved config.

    Nothing is created on disk.
    """
    from transformerlm.models.build import build_model
    from transformerlm.models.flops import flops_per_token, num_parameters
    from transformerlm.training import BatchLoader, CheckpointStore, Trainer, TrainingRun
    from transformerlm.training.data import validation_windows
    from transformerlm.utils.devices import select_device, select_dtype, set_threads
    from transformerlm.utils.dtypes import dtype_name

    train_data, valid_data = _open_data(config)
    config = config.model_copy(update={"model": _with_vocabulary(config.model, train_data, valid_data)})
    settings, model_settings = config.training, config.model
    device = select_device(settings.device)
    set_threads(settings.threads)
    dtype = select_dtype(settings.dtype, device)
    model = build_model(model_settings, device=device, seed=settings.seed)
    run_dir = settings.runs_dir / config.logging.run_name
    windows = {"context_length": model_settings.context_length, "device": device}
    run = TrainingRun(
        trainer=Trainer(
            model,
            optimizer=config.optimizer,
            schedule=config.schedule,
            training=settings,
            device=device,
            dtype=dtype,
        ),
        loader=BatchLoader(train_data.tokens, batch_size=settings.batch_size, seed=settings.seed, **windows),
        valid_batches=validation_windows(
            valid_data.tokens, windows=config.validation.windows, batch_size=config.validation.batch_size, **windows
        ),
        valid_bytes_per_token=valid_data.bytes_per_token(),
        store=CheckpointStore(
            run_dir / "checkpoints",
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
    step = _resume(run, config)
    tokens = settings.steps * settings.batch_size * model_settings.context_length
    say(
        f"training {num_parameters(model):,} parameters for {settings.steps:,} steps, {tokens:,} tokens "
        f"({tokens / train_data.info.num_tokens:.2f} epochs) on {device.type} in {dtype_name(dtype)}; "
        f"run folder {run_dir}"
    )
    if nvtx.enabled():
        attach_nvtx(model)
    if step:
        say(f"continuing after step {step}")
    return run, step, config


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


def _with_vocabulary(model: ModelHparams, *datasets: "TokenDataset") -> ModelHparams:
    """Take the vocabulary size from the data where it is unset; raise `ConfigError` where it is too small."""
    if model.vocab_size is None:
        return model.model_copy(update={"vocab_size": datasets[0].info.vocab_size})
    for dataset in datasets:
        if dataset.info.max_token_id >= model.vocab_size:
            raise ConfigError(
                f"model.vocab_size: is smaller than the largest id of {dataset.path}, {dataset.info.max_token_id} "
                f"(got {model.vocab_size}); leave it unset to take the tokenizer's {dataset.info.vocab_size}"
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
    newest = run.store.newest()
    if newest is None:
        return 0
    if config.training.resume == "never":
        raise CheckpointError(
            f"{run.store.folder}: holds checkpoints already; choose another logging.run_name, "
            "or set training.resume to auto to continue from them"
        )
    run.resume(newest)
    return run.progress.step


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
