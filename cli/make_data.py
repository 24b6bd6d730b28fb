"""`transformerlm-make-data`: text to token files with sidecars."""

import sys
import time
from pathlib import Path

from cli.progress import progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command
from config.make_data import MakeDataConfig


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
    from databuilder import build_dataset
    from transformerlm.tokenizer import Tokenizer

    settings = config.output
    tokenizer = Tokenizer.load(settings.tokenizer)
    sources = [Path(file.name) for file in find_sources(config.input.sources)]
    valid_sources = [Path(file.name) for file in find_sources(config.input.valid_sources)]
    start = time.perf_counter()
    with progress_bar("encoding") as update:

        def show(done: int, total: int, tokens: int) -> None:
            speed = tokens / max(time.perf_counter() - start, 1e-9)
            update(done / max(total, 1), f"{done / 1e6:,.1f} MB  {tokens:,} tokens  {speed:,.0f} tokens/s")

        report = build_dataset(
            sources,
            tokenizer,
            settings.train,
            valid=settings.valid,
            valid_sources=valid_sources,
            valid_fraction=config.input.valid_fraction,
            separator=config.input.separator,
            workers=settings.workers,
            progress=show,
        )
    seconds = time.perf_counter() - start
    for path, info in ((settings.train, report.train), (settings.valid, report.valid)):
        if info is not None:
            say(
                f"wrote {path}: {info.num_tokens:,} tokens, {info.num_documents:,} documents, "
                f"{info.num_text_bytes / max(info.num_tokens, 1):.2f} bytes a token ({seconds:.1f} s)"
            )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
