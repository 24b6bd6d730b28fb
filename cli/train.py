"""`transformerlm-train`: train a model on token files, in a run folder."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.beginning import Beginning, run_dir_of
from cli.data import RunData, batch_loader, data_identity, epochs_text, open_data
from cli.plots import plot_loss
from cli.progress import Update, progress_bar, say, say_compiling
from cli.resume import resume_newest
from cli.utils import EXIT_OK, Invocation, run_command, stop_on_signals
from config.io import COMMAND_LINE, to_toml
from config.train import TrainConfig
from profiling import attach_nvtx
from transformerlm.fast.allocator import keep_freed_memory
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import ConfigError
from transformerlm.utils.files import atomic_write_text, exclusive

if TYPE_CHECKING:
    from transformerlm.distributed.group import World
    from transformerlm.training import BatchLoader, TrainingRun

EPILOG = """exit codes: 0 trained to the end, 2 a mistake to mend, 130 and 143 stopped by Ctrl-C and SIGTERM after
saving a checkpoint; the same command continues from it.
next: transformerlm-infer --checkpoint runs/NAME --prompt "Once upon a time"
"""


def main() -> int:
    """Run the command; return its exit code."""
    code = run_command(TrainConfig, _run, prog="transformerlm-train", epilog=EPILOG)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from transformerlm.distributed.group import end_process

        end_process(code)
    return code


def _run(invocation: Invocation[TrainConfig]) -> int:
    # A progress bar would break JSON lines on a terminal.
    json_on_terminal = invocation.config.logging.format == "json" and sys.stdout.isatty()
    origin = str(invocation.config_path or COMMAND_LINE)
    return train(invocation.config, origin=origin, show_bar=not json_on_terminal)


def train(config: TrainConfig, *, origin: str, show_bar: bool) -> int:
    """Train the model of `config`, resuming from the newest checkpoint of its run folder if there is one.

    Returns the exit code. `origin` names the source of the configuration in errors.
    """
    keep_freed_memory()
    run_dir = run_dir_of(config)
    with stop_on_signals() as exit_code, _join_world(config) as world:
        _require_even_shares(config, world, origin)
        config, data, beginning = _settle(config, world, origin=origin)
        run = _build_run(config, data, world, should_stop=lambda: exit_code() is not None)
        attach_nvtx(run.trainer.loss)
        with _held_by_first(run_dir, world) as check_folder:
            run.store.clean()
            changes = resume_newest(run, config)
            first_step = run.progress.step
            if first_step >= config.training.steps:
                say(
                    f"already trained to step {first_step}: nothing to do; raise training.steps to go on, "
                    "or choose another logging.run_name to begin anew"
                )
                return EXIT_OK
            if beginning is not None and beginning.is_new and not first_step:
                beginning.load(run)
            _announce(run, config, first_step)
            for change in changes:
                say(f"since that checkpoint: {change}")
            _compile(run)
            code = _train_logged(
                run, config, changes, check_folder=check_folder, exit_code=exit_code, show_bar=show_bar
            )
    if world.is_first:
        say(f"loss curve: {plot_loss(run_dir)}")
    if run.progress.step < config.training.steps:
        say(f"stopped after step {run.progress.step} of {config.training.steps}; the same command continues")
    return code


def _settle(config: TrainConfig, world: "World", *, origin: str) -> tuple[TrainConfig, RunData, Beginning | None]:
    """Open checkpoint and data; return the configuration with the model settings they determine."""
    beginning = Beginning.find(config, world)
    with world.together():
        if beginning is not None:
            config = beginning.completed(config, origin=origin)
        data = open_data(config, verify=world.local_rank == 0)
        if beginning is not None:
            beginning.require_tokenizer(config, data)
    model = _with_vocabulary(config.model, data, origin=origin)
    return config.model_copy(update={"model": model}), data, beginning


def _train_logged(
    run: "TrainingRun",
    config: TrainConfig,
    changes: list[str],
    *,
    check_folder: Callable[[], None],
    exit_code: Callable[[], int | None],
    show_bar: bool,
) -> int:
    """Train and send the records to the logging backends; return the exit code."""
    from logger import NoopLogger, make_logger

    run_dir, world = run_dir_of(config), run.trainer.parallelism.world
    # Check disk space before training: a checkpoint is the weights plus up to two moments each.
    run.store.prepare(3 * sum(parameter.nbytes for parameter in run.trainer.model.parameters()))
    log = NoopLogger()
    if world.is_first:
        log = make_logger(config.logging, config.wandb, run_dir=run_dir, resume_step=run.progress.step)
    code = 1  # reported to the logger if an exception ends the run
    try:
        if world.is_first:
            atomic_write_text(run_dir / "config.toml", to_toml(config))
        log.start(config.model_dump(mode="json"))
        log.log(_start_record(run, config, changes))
        log.log_artifact(config.data.tokenizer, name=f"{config.logging.run_name}-tokenizer", kind="tokenizer")
        with progress_bar("training", enabled=show_bar) as update:
            show = _shower(update, config.training.steps)
            for record in run.run():
                check_folder()
                log.log(record)
                show(record)
                if record["event"] == "checkpoint":
                    name = f"{config.logging.run_name}-checkpoint"
                    log.log_artifact(Path(record["path"]), name=name, kind="model")
        finished = run.progress.step >= config.training.steps
        code = EXIT_OK if finished else world.agree(exit_code() or EXIT_OK)
    finally:
        log.finish(code)
    return code


def _start_record(run: "TrainingRun", config: TrainConfig, changes: list[str]) -> dict[str, Any]:
    """Return the record of a start: code, settings, versions, device, and what has changed since the checkpoint."""
    from transformerlm.checkpoint.fingerprint import code_version
    from transformerlm.training.state import environment

    settings = {
        f"settings.{table}.{key}": value
        for table, values in config.model_dump(mode="json").items()
        for key, value in values.items()
    }
    code = {f"code.{key}": value for key, value in code_version().items()}
    surroundings = {f"environment.{key}": value for key, value in environment(run.trainer).items()}
    start = {"event": "train_start", "step": run.progress.step, "time": time.time(), "changes": changes}
    return start | run.counters() | code | surroundings | settings


def _join_world(config: TrainConfig) -> "AbstractContextManager[World]":
    """Return the context in which this process is part of its torchrun group, if any."""
    from transformerlm.distributed.group import join_world
    from transformerlm.utils.devices import select_device

    timeout = timedelta(seconds=config.parallel.timeout_seconds)
    return join_world(select_device(config.training.device), timeout=timeout)


def _require_even_shares(config: TrainConfig, world: "World", origin: str) -> None:
    """Raise `ConfigError` unless the batch splits evenly into processes and micro-batches."""
    training = config.training
    batch, piece = training.batch_size, training.micro_batch_size
    rows, rest = divmod(batch, world.size)
    if rest:
        raise ConfigError(f"{origin}: training.batch_size: must be divisible by {world.size} processes (got {batch})")
    if piece is not None and piece < rows and rows % piece:
        raise ConfigError(
            f"{origin}: training.micro_batch_size: must divide the {rows} sequences of each process (got {piece})"
        )


@contextlib.contextmanager
def _held_by_first(run_dir: Path, world: "World") -> Iterator[Callable[[], None]]:
    """Let the first process lock the run folder for all processes; yields what `exclusive` yields."""
    with contextlib.ExitStack() as stack:
        check: Callable[[], None] = lambda: None  # noqa: E731
        with world.together():
            if world.is_first:
                check = stack.enter_context(exclusive(run_dir))
        yield check


def _build_run(config: TrainConfig, data: RunData, world: "World", *, should_stop: Callable[[], bool]) -> "TrainingRun":
    """Build the parts of a run, without writing to disk."""
    import torch

    from transformerlm.checkpoint.group_store import GroupCheckpointStore
    from transformerlm.distributed.sharding import Parallelism, choose_strategy
    from transformerlm.models.build import build_model
    from transformerlm.models.flops import flops_per_token
    from transformerlm.training import CheckpointStore, Trainer, TrainingRun
    from transformerlm.training.data import validation_windows
    from transformerlm.utils.devices import select_training_dtype, set_threads

    settings, device = config.training, world.device
    set_threads(settings.threads)
    torch.manual_seed(settings.seed)  # otherwise torch picks a random seed, and checkpoints hold its state
    model = build_model(config.model, device=device, seed=settings.seed)
    strategy = choose_strategy(config.parallel.strategy, world, sum(p.numel() for p in model.parameters()))
    parallelism = Parallelism(world, strategy)
    loader = batch_loader(config, data.train, device=device, rank=world.rank, world_size=world.size)
    return TrainingRun(
        trainer=Trainer(
            model,
            optimizer=config.optimizer,
            schedule=config.schedule,
            training=settings,
            device=device,
            dtype=select_training_dtype(settings.dtype, device),
            parallelism=parallelism,
            mask_after=data.end_of_text_id if config.data.mask_documents else None,
        ),
        loader=loader,
        valid_batches=validation_windows(
            data.valid.tokens,
            windows=config.validation.windows,
            batch_size=config.validation.batch_size,
            context_length=config.model.context_length,
            device=device,
        ),
        valid_bytes_per_token=data.valid.bytes_per_token(),
        store=GroupCheckpointStore(
            CheckpointStore(
                run_dir_of(config) / "checkpoints",
                keep_last=config.checkpoint.keep_last,
                config_toml=to_toml(config),
                tokenizer=config.data.tokenizer,
                hparams=config.model,
            ),
            parallelism,
        ),
        identity=_identity(config, data, loader),
        logging=config.logging,
        validation=config.validation,
        checkpoint=config.checkpoint,
        flops_per_token=flops_per_token(model),
        should_stop=lambda: world.agree(should_stop()) > 0,  # so all processes save the same step
    )


def _announce(run: "TrainingRun", config: TrainConfig, first_step: int) -> None:
    from transformerlm.utils.dtypes import dtype_name

    parameters = sum(parameter.numel() for parameter in run.trainer.model.parameters())
    tokens = config.training.steps * config.training.batch_size * config.model.context_length
    say(
        f"training {parameters:,} parameters for {config.training.steps:,} steps, {tokens:,} tokens "
        f"({epochs_text(config, run.loader)}) on {_devices(run)} in "
        f"{dtype_name(run.trainer.dtype)}; run folder {run_dir_of(config)}"
    )
    if first_step:
        say(f"continuing after step {first_step}")


def _compile(run: "TrainingRun") -> None:
    """Compile the training step before the first step, if enabled, and log how long it took."""
    trainer = run.trainer
    if trainer.compilation.problem:
        say(f"not compiled, which would be faster: {trainer.compilation.problem}")
    if trainer.compilation.active and not run.should_stop():
        say_compiling("the training step")
        start = time.perf_counter()
        trainer.warm_up(run.loader.batch(run.progress.step))
        say(f"compiled in {time.perf_counter() - start:.0f} s")


def _devices(run: "TrainingRun") -> str:
    parallelism, device = run.trainer.parallelism, run.trainer.device.type
    if parallelism.world.size == 1:
        return device
    return f"{parallelism.world.size} {device} processes ({parallelism.strategy})"


def _with_vocabulary(model: ModelHparams, data: RunData, *, origin: str) -> ModelHparams:
    """Take an unset vocabulary size from the data; raise `ConfigError` if it is too small."""
    needed = data.train[0].info.vocab_size
    if model.vocab_size is None:
        return model.model_copy(update={"vocab_size": needed})
    if model.vocab_size < needed:
        raise ConfigError(
            f"{origin}: model.vocab_size: must be at least {needed}, the vocabulary of {data.train[0].path}, whose "
            f"largest id is {max(dataset.info.max_token_id for dataset in (*data.train, data.valid))} "
            f"(got {model.vocab_size}); leave it unset to take the data's"
        )
    return model


def _identity(config: TrainConfig, data: RunData, loader: "BatchLoader") -> dict[str, Any]:
    init_from = config.training.init_from
    return {
        **({} if init_from is None else {"init_from": str(init_from.resolve())}),
        **data_identity(config, data.train, loader),
        "tokenizer": data.train[0].info.tokenizer_sha256,
        "seed": config.training.seed,
        "batch_size": config.training.batch_size,
        **{f"model.{key}": value for key, value in config.model.model_dump().items()},
    }


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
