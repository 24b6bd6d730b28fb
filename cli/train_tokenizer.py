"""`transformerlm-train-tokenizer`: text to vocab.json and merges.txt."""

import sys
import time

from cli.progress import progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.utils.files import require_writable


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(
        TrainTokenizerConfig,
        _run,
        prog="transformerlm-train-tokenizer",
        epilog="next: transformerlm-make-data --config config/resources/make_data.toml",
    )


def _run(invocation: Invocation[TrainTokenizerConfig]) -> int:
    return train_tokenizer(invocation.config)


def train_tokenizer(config: TrainTokenizerConfig) -> int:
    """Train the tokenizer that `config` describes; return the exit code."""
    from cli.sources import find_sources
    from transformerlm.tokenizer import Tokenizer, train_bpe

    settings = config.tokenizer
    files = find_sources(config.input.sources)
    size = sum(file.num_bytes for file in files)
    require_writable(settings.output, "tokenizer.output")
    say(f"training a tokenizer of {settings.vocab_size:,} entries on {size / 1e6:,.1f} MB of text")
    start = time.perf_counter()
    with progress_bar("tokenizer") as update:
        vocab, merges = train_bpe(
            [file.name for file in files],
            settings.vocab_size,
            list(settings.special_tokens),
            num_workers=settings.workers or None,
            progress=lambda phase, share: update(share, phase),
        )
    if len(vocab) < settings.vocab_size:
        say(f"the text has no more pairs to merge: the vocabulary has {len(vocab):,} entries")
    Tokenizer(vocab, merges, list(settings.special_tokens)).save(settings.output)
    say(f"wrote {settings.output}/vocab.json and merges.txt ({time.perf_counter() - start:.1f} s)")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
