"""`transformerlm-quickstart`: from nothing to generated stories, in four stages.

Each stage is the command of the same name with a shipped configuration. A stage whose settings, inputs and
outputs are unchanged since its last run is skipped; an interrupted training run is resumed.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.progress import say
from cli.utils import EXIT_OK, Invocation, run_command
from config.infer import InferConfig
from config.io import load_config
from config.make_data import MakeDataConfig
from config.quickstart import QuickstartConfig, QuickstartSection
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.utils.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from cli.stages import Stage


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(QuickstartConfig, _run, prog="transformerlm-quickstart")


def _run(invocation: Invocation[QuickstartConfig]) -> int:
    start = time.perf_counter()
    settings = invocation.config.quickstart
    tokenizer = load_config(TrainTokenizerConfig, settings.tokenizer)
    data = load_config(MakeDataConfig, settings.data)
    training = load_config(TrainConfig, settings.train)
    inference = load_config(InferConfig, settings.infer)
    _check_hand_over(tokenizer, data, training, inference)
    stages = (
        _tokenizer_stage(tokenizer),
        _data_stage(data),
        _training_stage(training, origin=str(settings.train), force=settings.force),
    )
    for number, stage in enumerate(stages, start=1):
        if not settings.force and stage.is_up_to_date():
            say(f"[{number}/4] {stage.title}: up to date")
            continue
        say(f"[{number}/4] {stage.title}")
        code = stage.run()
        if code != EXIT_OK:
            return code
        stage.stamp_finished()
    say("[4/4] generate\n")
    _generate(inference, settings.prompts or inference.inference.prompts)
    _report(training, settings, time.perf_counter() - start)
    return EXIT_OK


def _check_hand_over(
    tokenizer: TrainTokenizerConfig, data: MakeDataConfig, training: TrainConfig, inference: InferConfig
) -> None:
    """Raise `ConfigError` if a stage does not read the previous stage's output."""
    run_dir = training.training.runs_dir / training.logging.run_name
    pairs = (
        ("data: output.tokenizer", data.output.tokenizer, "tokenizer: tokenizer.output", tokenizer.tokenizer.output),
        ("train: data.tokenizer", training.data.tokenizer, "tokenizer: tokenizer.output", tokenizer.tokenizer.output),
        *(("train: data.train", path, "data: output.train", data.output.train) for path in training.data.train),
        ("train: data.valid", training.data.valid, "data: output.valid", data.output.valid),
        ("infer: inference.checkpoint", inference.inference.checkpoint, "train: the run folder", run_dir),
    )
    problems = [
        f"{reader} must be what the stage before it makes, {writer} = {made} (got {read})"
        for reader, read, writer, made in pairs
        if read != made
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _tokenizer_stage(config: TrainTokenizerConfig) -> "Stage":
    from cli.sources import find_sources
    from cli.stages import Stage
    from cli.train_tokenizer import train_tokenizer

    folder = config.tokenizer.output
    input_files = find_sources(config.input.sources, format=config.input.format)
    return Stage(
        title="train a tokenizer",
        config=config,
        inputs=lambda: input_files,
        outputs=lambda: _tokenizer_files(folder),
        stamp=folder / "stage.json",
        run=lambda: train_tokenizer(config),
    )


def _data_stage(config: MakeDataConfig) -> "Stage":
    from cli.make_data import make_data
    from cli.sources import find_sources
    from cli.stages import Stage

    input_files = find_sources((*config.input.sources, *config.input.valid_sources), format=config.input.format)
    token_files = [path for path in (config.output.train, config.output.valid) if path is not None]
    return Stage(
        title="build the token files",
        config=config,
        inputs=lambda: [*input_files, *_tokenizer_files(config.output.tokenizer)],
        outputs=lambda: _files_of(token_files),
        stamp=config.output.train.with_name(config.output.train.name + ".stage.json"),
        run=lambda: make_data(config),
    )


def _training_stage(config: TrainConfig, *, origin: str, force: bool) -> "Stage":
    from cli.stages import Stage
    from cli.train import train
    from transformerlm.checkpoint.folder import checkpoint_folders

    run_dir = config.training.runs_dir / config.logging.run_name
    token_files = [*config.data.train, config.data.valid]
    # No records on stdout, which is for the stories.
    quiet = config.model_copy(update={"logging": config.logging.model_copy(update={"backend": ("noop",)})})

    def run() -> int:
        if run_dir.exists() and (force or not stage.is_same_work() or not _is_of_this_code(run_dir)):
            _move_aside(run_dir)
        stage.stamp_begun()
        return train(quiet, origin=origin, show_bar=True)

    stage = Stage(
        title="train a model",
        config=config,
        inputs=lambda: [*_files_of(token_files), *_tokenizer_files(config.data.tokenizer)],
        outputs=lambda: [path / "manifest.json" for path in checkpoint_folders(run_dir / "checkpoints")],
        stamp=run_dir / "stage.json",
        run=run,
        is_usable=lambda: _is_of_this_code(run_dir, say=say),
    )
    return stage


def _is_of_this_code(run_dir: Path, *, say: Callable[[str], None] = lambda _line: None) -> bool:
    """Whether the newest checkpoint was trained by equivalent code; logs the reason if not."""
    from transformerlm.checkpoint.folder import Checkpoint, checkpoint_folders
    from transformerlm.checkpoint.integrity import DamagedCheckpointError

    if not checkpoint_folders(run_dir / "checkpoints"):
        return True
    try:
        Checkpoint.open(run_dir).require_same_code()
    except DamagedCheckpointError:  # training falls back to the one before
        return True
    except CheckpointError as error:
        say(f"{error}; training again")
        return False
    return True


def _files_of(token_files: Sequence[Path]) -> list[Path]:
    """Return the sidecars and shards of token files; only the sidecar if a file is missing or incomplete."""
    from transformerlm.token_files.index import read_info, shard_paths, sidecar_path

    files: list[Path] = []
    for path in token_files:
        files.append(sidecar_path(path))
        with contextlib.suppress(DataError):
            files += shard_paths(path, read_info(path))
    return files


def _tokenizer_files(folder: Path) -> list[Path]:
    from transformerlm.tokenizer.io import MERGES_FILE, VOCAB_FILE
    from transformerlm.tokenizer.settings import SETTINGS_FILE

    settings = folder / SETTINGS_FILE  # only where a tokenizer differs from GPT-2's
    return [folder / VOCAB_FILE, folder / MERGES_FILE, *([settings] if settings.exists() else [])]


def _move_aside(run_dir: Path) -> None:
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
        number += 1
    run_dir.rename(aside)
    say(f"the run folder that was there is kept as {aside}")


def _generate(config: InferConfig, prompts: Sequence[str]) -> None:
    from cli.infer import load_predictor, print_texts

    print_texts(load_predictor(config), prompts, config)


def _report(training: TrainConfig, settings: QuickstartSection, seconds: float) -> None:
    from cli.plots import plot_loss, read_records

    run_dir = training.training.runs_dir / training.logging.run_name
    last = [record for record in read_records(run_dir) if record["event"] == "validation"][-1]
    loss, bits = float(last["metrics.valid_loss"]), float(last["metrics.valid_bits_per_byte"])
    uv_run = "uv run " if "UV" in os.environ else ""  # uv says so to what it runs; outside of it the names are unknown
    say(
        f"""
validation loss   {loss:.3f} nats per token, {bits:.3f} bits per byte (of a few windows of the text as one stream)
loss curve        {plot_loss(run_dir)}
run folder        {run_dir}
time              {seconds:.0f} s

Try next:
  {uv_run}transformerlm-infer --checkpoint {run_dir} --prompt "The dragon was lonely because"
  {uv_run}transformerlm-infer --config {_from_here(settings.infer)} --sampling.seed 1
  {uv_run}transformerlm-serve --checkpoint {run_dir}
  {uv_run}transformerlm-train --config {_from_here(settings.train)} --training.steps 3000 --logging.run-name longer"""
    )


def _from_here(path: Path) -> str:
    """Return the path as one would type it in this folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
