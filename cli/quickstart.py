"""`transformerlm-quickstart`: from nothing to generated stories, in four stages.

Each stage is the command of the same name with a shipped configuration. A stage whose settings, inputs and
outputs are as its last run left them is skipped.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.progress import say
from cli.utils import EXIT_OK, Invocation, run_command
from config.infer import InferConfig
from config.io import load_config
from config.make_data import MakeDataConfig
from config.quickstart import QuickstartConfig, QuickstartSection
from config.schemas import Config
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(QuickstartConfig, _run, prog="transformerlm-quickstart")


@dataclass(frozen=True)
class Stage:
    """A step of the way: what it reads and writes, and the stamp that says what it last read and wrote."""

    title: str
    config: Config
    inputs: Sequence[Path]
    outputs: Callable[[], Sequence[Path]]
    stamp: Path
    run: Callable[[], int]

    def is_up_to_date(self) -> bool:
        """Whether settings, inputs and outputs are those of the stage's last run."""
        if not self.stamp.exists():
            return False
        try:
            return json.loads(self.stamp.read_text(encoding="utf-8")) == self._state()
        except (ValueError, FileNotFoundError):
            return False

    def record(self) -> None:
        """Write the stamp, after a run."""
        from transformerlm.utils.files import write_json

        write_json(self.stamp, self._state())

    def _state(self) -> dict[str, Any]:
        from transformerlm.utils.files import sha256_file

        return {
            "config": self.config.model_dump(mode="json"),
            "inputs": {str(path): sha256_file(path) for path in self.inputs},
            "outputs": {str(path): sha256_file(path) for path in self.outputs()},
        }


def _run(invocation: Invocation[QuickstartConfig]) -> int:
    start = time.perf_counter()
    settings = invocation.config.quickstart
    tokenizer = load_config(TrainTokenizerConfig, settings.tokenizer)
    data = load_config(MakeDataConfig, settings.data)
    training = load_config(TrainConfig, settings.train)
    inference = load_config(InferConfig, settings.infer)
    for number, stage in enumerate(_stages(tokenizer, data, training, settings.force), start=1):
        if not settings.force and stage.is_up_to_date():
            say(f"[{number}/4] {stage.title}: up to date")
            continue
        say(f"[{number}/4] {stage.title}")
        code = stage.run()
        if code != EXIT_OK:
            return code
        stage.record()
    say("[4/4] generate")
    _generate(inference, settings.prompts or inference.inference.prompts)
    _report(training, settings, time.perf_counter() - start)
    return EXIT_OK


def _stages(
    tokenizer: TrainTokenizerConfig, data: MakeDataConfig, training: TrainConfig, force: bool
) -> Sequence[Stage]:
    from cli.make_data import make_data
    from cli.sources import find_sources
    from cli.train_tokenizer import train_tokenizer
    from transformerlm.tokenizer.io import MERGES_FILE, VOCAB_FILE
    from transformerlm.training.checkpoint import checkpoint_folders
    from transformerlm.utils.token_file import sidecar_path

    folder = tokenizer.tokenizer.output
    tokenizer_files = [folder / VOCAB_FILE, folder / MERGES_FILE]
    token_files = [path for path in (data.output.train, data.output.valid) if path is not None]
    run_dir = training.training.runs_dir / training.logging.run_name

    def train_outputs() -> Sequence[Path]:
        return [path / "manifest.json" for path in checkpoint_folders(run_dir / "checkpoints")]

    return (
        Stage(
            "train a tokenizer",
            tokenizer,
            find_sources(tokenizer.input.sources),
            lambda: tokenizer_files,
            folder / "stage.json",
            lambda: train_tokenizer(tokenizer),
        ),
        Stage(
            "build the token files",
            data,
            [*find_sources(data.input.sources), *find_sources(data.input.valid_sources), *tokenizer_files],
            lambda: [*token_files, *map(sidecar_path, token_files)],
            data.output.train.with_name(data.output.train.name + ".stage.json"),
            lambda: make_data(data),
        ),
        Stage(
            "train a model",
            training,
            [training.data.train, training.data.valid, *tokenizer_files],
            train_outputs,
            run_dir / "stage.json",
            lambda: _train(training, run_dir, afresh=force),
        ),
    )


def _train(config: TrainConfig, run_dir: Path, *, afresh: bool) -> int:
    """Train, without records on stdout; a run folder of other data or another shape is moved aside first."""
    from cli.train import train
    from transformerlm.training.loop import OtherRunError

    quiet = config.model_copy(update={"logging": config.logging.model_copy(update={"backend": ("noop",)})})
    if afresh and run_dir.exists():
        _move_aside(run_dir)
    try:
        return train(quiet, show_bar=True)
    except OtherRunError:
        _move_aside(run_dir)
        return train(quiet, show_bar=True)


def _move_aside(run_dir: Path) -> None:
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
        number += 1
    run_dir.rename(aside)
    say(f"the former run folder is now {aside}")


def _generate(config: InferConfig, prompts: Sequence[str]) -> None:
    from cli.infer import load_predictor, print_text

    predictor = load_predictor(config)
    for prompt in prompts:
        print()
        print_text(predictor, prompt, config)


def _report(training: TrainConfig, settings: QuickstartSection, seconds: float) -> None:
    from cli.plots import plot_loss, read_records

    run_dir = training.training.runs_dir / training.logging.run_name
    last = [record for record in read_records(run_dir) if record["event"] == "validation"][-1]
    say(
        f"""
validation loss   {last["metrics.valid_loss"]:.3f} nats a token, {last["metrics.valid_bits_per_byte"]:.3f} bits a byte
loss curve        {plot_loss(run_dir)}
run folder        {run_dir}
time              {seconds:.0f} s

Try next:
  transformerlm-infer --checkpoint {run_dir} --prompt "The dragon was lonely because"
  transformerlm-infer --config {_from_here(settings.infer)} --sampling.seed 1
  transformerlm-train --config {_from_here(settings.train)} --training.steps 2000 --logging.run-name longer
  transformerlm-train --help"""
    )


def _from_here(path: Path) -> str:
    """Return the path as one would type it in this folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
