"""`transformerlm-train-tokenizer`: train a tokenizer on text; writes vocab.json and merges.txt."""

import sys
import time

from cli.progress import progress_bar, say
from cli.utils import EXIT_OK, Invocation, run_command
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.utils.errors import DataError
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
    from cli.sources import find_sources, reading_of, say_left_out
    from databuilder.counting import count_sources
    from databuilder.engine import open_executor
    from transformerlm.tokenizer import Tokenizer
    from transformerlm.tokenizer.bpe_trainer import train_bpe_on_counts
    from transformerlm.tokenizer.io import VOCAB_FILE

    settings = config.tokenizer
    files = find_sources(config.input.sources, format=config.input.format)
    require_writable(settings.output, "tokenizer.output")
    size = sum(file.num_bytes for file in files)
    say(f"training a tokenizer of {settings.vocab_size:,} entries on {size / 1e6:,.1f} MB of text")
    if (settings.output / VOCAB_FILE).exists():
        say(f"{settings.output}: the tokenizer that is there will be replaced")
    start = time.perf_counter()
    with (
        progress_bar("tokenizer") as update,
        open_executor(settings.engine, settings.workers, settings.scheduler_address) as executor,
    ):
        pretokens, text = count_sources(
            files,
            reading_of(config.input),
            settings.special_tokens,
            executor=executor,
            workers=settings.workers,
            progress=lambda share: update(share, "count"),
            log=say,
        )
        if not text.documents_used:
            raise DataError(f"{', '.join(config.input.sources)}: the text is empty; give some to learn from")
        vocab, merges = train_bpe_on_counts(
            pretokens,
            settings.vocab_size,
            list(settings.special_tokens),
            progress=lambda phase, share: update(share, phase),
        )
    say_left_out(text.to_json())
    if len(vocab) < settings.vocab_size:
        say(f"the text has no more pairs to merge: the vocabulary has {len(vocab):,} entries")
    Tokenizer(vocab, merges, list(settings.special_tokens)).save(settings.output)
    say(f"wrote {settings.output}/vocab.json and merges.txt ({time.perf_counter() - start:.1f} s)")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
