"""`transformerlm-make-data`: turn text into token files with sidecars."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command
from config.make_data import MakeDataConfig
from config.schemas import DatasetOutputSection

if TYPE_CHECKING:
    from databuilder.dataset_builder import BuildReport
    from databuilder.progress import Progress
    from databuilder.sources import SourceFile

PHASES = {"encode": "encoding", "write": "writing"}


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(
        MakeDataConfig,
        _run,
        prog="transformerlm-make-data",
        epilog="next: transformerlm-train --config config/resources/train.toml",
    )


def _run(invocation: Invocation[MakeDataConfig]) -> int:
    return make_data(invocation.config)


def make_data(config: MakeDataConfig) -> int:
    """Build the token files that `config` describes; return the exit code."""
    from cli.sources import find_sources
    from transformerlm.token_files.index import sidecar_path
    from transformerlm.tokenizer import Tokenizer

    settings = config.output
    tokenizer = Tokenizer.load(_tokenizer_folder(settings.tokenizer))
    sources = find_sources(config.input.sources, format=config.input.format)
    valid_sources = find_sources(config.input.valid_sources, format=config.input.format)
    for path in (settings.train, settings.valid):
        if path is not None and sidecar_path(path).exists():
            say(f"{path}: the token file that is there will be replaced")
    start = time.perf_counter()
    try:
        report = _build(config, sources, valid_sources, tokenizer)
    except (KeyboardInterrupt, SystemExit):  # SIGTERM raises SystemExit
        from databuilder.build_directory import build_folder

        say(f"stopped; what is finished is kept in {build_folder(settings.train)}, and the same command continues")
        raise
    _tell(settings, report, time.perf_counter() - start)
    return EXIT_OK


def _tokenizer_folder(path: Path) -> Path:
    """Return `path`, or the newest checkpoint in it if it is a run folder or its checkpoints folder."""
    if "checkpoints" in (path.name, *(file.name for file in path.glob("*"))):
        from transformerlm.training import Checkpoint

        return Checkpoint.open(path).path
    return path


def _build(
    config: MakeDataConfig, sources: "Sequence[SourceFile]", valid_sources: "Sequence[SourceFile]", tokenizer: Any
) -> "BuildReport":
    from databuilder import build_dataset
    from databuilder.engine import open_executor

    settings = config.output
    with ExitStack() as stack:
        update = stack.enter_context(progress_bar("tokens"))
        executor = None
        if settings.engine != "local":
            executor = stack.enter_context(open_executor(settings.engine, settings.workers, settings.scheduler_address))
        return build_dataset(
            sources,
            tokenizer,
            settings.train,
            valid=settings.valid,
            valid_sources=valid_sources,
            valid_fraction=config.input.valid_fraction,
            separator=config.input.separator,
            text_field=config.input.text_field,
            errors=config.input.errors,
            skip_null=config.input.skip_null,
            shuffle=settings.shuffle,
            seed=settings.seed,
            shard_tokens=settings.shard_tokens,
            workers=settings.workers,
            executor=executor,
            progress=_shown_by(update),
            log=say,
        )


def _shown_by(update: Update) -> "Callable[[Progress], None]":
    """Return a function that shows progress, with the mean speed of the current phase."""
    first: dict[str, tuple[float, int]] = {}

    def show(progress: "Progress") -> None:
        now = time.perf_counter()
        since, tokens_before = first.setdefault(progress.phase, (now, progress.num_tokens))
        speed = (progress.num_tokens - tokens_before) / max(now - since, 1e-9)
        update(
            progress.share,
            f"{PHASES[progress.phase]}  {progress.num_bytes / 1e6:,.1f} MB  {progress.num_documents:,} documents  "
            f"{speed:,.0f} tokens/s",
        )

    return show


def _tell(settings: DatasetOutputSection, report: "BuildReport", seconds: float) -> None:
    """Log what was written and what was left out."""
    from cli.sources import say_left_out

    for path, info in ((settings.train, report.train), (settings.valid, report.valid)):
        if info is None or path is None:
            continue
        files = f" in {len(info.shards)} files" if len(info.shards) > 1 else ""
        say(
            f"wrote {path}: {info.num_tokens:,} tokens{files}, {info.num_documents:,} documents, "
            f"{info.num_text_bytes / max(info.num_tokens, 1):.2f} bytes a token ({seconds:.1f} s)"
        )
    texts = [report.train.text]
    if report.valid is not None and report.valid.sources != report.train.sources:
        texts.append(report.valid.text)
    for text in texts:
        say_left_out(text)


if __name__ == "__main__":
    sys.exit(main())
