"""`transformerlm-bench-tokenizer`: how fast the tokenizer is trained, encodes and decodes, beside tiktoken.

Training is timed in its two hops, counting pre-tokens and learning merges. Encoding is timed cold, by a
tokenizer that has encoded nothing yet, and warm, when it does the same text once more; then decoding, and one
call on a dozen characters. tiktoken, where it is installed, does the same with the same vocabulary in the same
repeats, one thread each, after both have been seen to give the same ids.

stdout gets one line of JSON with flat keys; MB are 10^6 bytes of UTF-8, tokens those of the whole text:

    benchmark, date, machine.*, setting.*     what was asked for, and where it ran
    text.mb, text.tokens, text.bytes_per_token, tokenizer.vocab_size
    train.vocab_size                          entries of the tokenizer that was trained
    X.seconds.{median,min,max}                of the repeats; X is train (both hops), train.count, train.merge,
                                              encode_cold, encode_warm, decode, tiktoken.encode, tiktoken.decode
    X.mb_per_second, X.tokens_per_second      by the median; no tokens in training
    short_call.us.{median,min,max}            microseconds of one call; tiktoken.short_call.us likewise
    ratio.X                                   our speed over tiktoken's: above 1 we are faster; X is encode_cold,
                                              encode_warm, decode, short_call
    tiktoken.version                          null, and no other key of it and no ratio, where it is not installed
    peak_memory_mb                            resident, of this process, worker processes left out
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarking.report import machine, peak_rss_bytes, print_summary, print_table
from benchmarking.timing import repeat, spread
from cli.progress import Update, progress_bar, say
from cli.utils import EXIT_OK, run_command
from config.bench_tokenizer import BenchTokenizerConfig, BenchTokenizerSection
from transformerlm.hparams import END_OF_TEXT
from transformerlm.utils.errors import DataError, TokenizerError

if TYPE_CHECKING:
    import tiktoken

    from transformerlm.tokenizer import Tokenizer

EPILOG = (
    "example: transformerlm-bench-tokenizer --config config/resources/bench_tokenizer.toml --benchmark.sources book.txt"
)
SHORT_CHARS = 12
SHORT_CALLS = 1000
PEERS = {
    "encode_cold": "tiktoken.encode",
    "encode_warm": "tiktoken.encode",
    "decode": "tiktoken.decode",
    "short_call": "tiktoken.short_call",
}
"""What of ours is compared with what of tiktoken's, which has no cache."""

Timings = dict[str, list[float]]
"""Seconds of every measured repeat, by what was timed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(
        BenchTokenizerConfig,
        lambda invocation: bench_tokenizer(invocation.config),
        prog="transformerlm-bench-tokenizer",
        epilog=EPILOG,
        argv=argv,
    )


def bench_tokenizer(config: BenchTokenizerConfig) -> int:
    """Measure what `config` describes and report it; return the exit code."""
    from transformerlm.tokenizer import Tokenizer

    settings = config.benchmark
    head = {"benchmark": "tokenizer", **machine(), **_settings(settings)}
    given = Tokenizer.load(settings.tokenizer) if settings.tokenizer is not None else None
    text = read_corpus(settings)
    with progress_bar("training") as update:
        trained, timings = time_training(text, settings, update)
    tokenizer = trained if given is None else given
    ids = tokenizer.encode(text)
    peer = make_peer(tokenizer)
    check_ids(tokenizer, peer, text, ids)
    with progress_bar("encoding and decoding") as update:
        timings |= time_coding(tokenizer, peer, text, settings, update)
    num_bytes = len(text.encode("utf-8"))
    results = summarise(timings, num_bytes=num_bytes, num_tokens=len(ids))
    _print_results(results)
    print_summary(
        {
            **head,
            "text.mb": num_bytes / 1e6,
            "text.tokens": len(ids),
            "text.bytes_per_token": num_bytes / len(ids),
            "tokenizer.vocab_size": tokenizer.vocab_size,
            "train.vocab_size": trained.vocab_size,
            "tiktoken.version": metadata.version("tiktoken") if peer else None,
            **results,
            "peak_memory_mb": peak_rss_bytes() / 1e6,
        }
    )
    return EXIT_OK


def read_corpus(settings: BenchTokenizerSection) -> str:
    """Return the first `megabytes` of the sources, or all of them if they hold less.

    Raises `DataError` if they are missing or too short to measure.
    """
    from cli.sources import find_sources
    from transformerlm.tokenizer.corpus import read_text

    wanted = round(settings.megabytes * 1e6)
    data = bytearray()
    for part in chain.from_iterable(map(read_text, find_sources(settings.sources))):
        data += part.encode("utf-8")
        if len(data) >= wanted:
            break
    else:
        say(f"the sources hold {len(data) / 1e6:.2f} MB, less than benchmark.megabytes = {settings.megabytes}")
    text = data[:wanted].decode("utf-8", errors="ignore")  # ignored: a character that the cut divides
    if len(text) < SHORT_CHARS:
        raise DataError(f"the text has {len(text)} characters; give at least {SHORT_CHARS} to measure")
    return text


def time_training(text: str, settings: BenchTokenizerSection, update: Update) -> tuple["Tokenizer", Timings]:
    """Train on `text`, from a file as users do; return the tokenizer and the timings of both hops."""
    from transformerlm.tokenizer import Tokenizer, count_pretokens, learn_merges

    num_merges = settings.vocab_size - 256 - 1  # 256 bytes and the special token
    counts: Mapping[bytes, int] = {}
    merges: list[tuple[bytes, bytes]] = []

    def count() -> None:
        nonlocal counts
        counts = count_pretokens(path, [END_OF_TEXT], num_workers=settings.workers or None)

    def merge() -> None:
        nonlocal merges
        merges = learn_merges(counts, num_merges)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.txt"
        path.write_bytes(text.encode("utf-8"))
        timings = repeat(
            {"train.count": count, "train.merge": merge},
            warmup=settings.warmup,
            repeats=settings.repeats,
            report=update,
        )
    timings["train"] = [sum(hops) for hops in zip(*timings.values(), strict=True)]
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    return Tokenizer(dict(enumerate(tokens)), merges, [END_OF_TEXT]), timings


def make_peer(tokenizer: "Tokenizer") -> "tiktoken.Encoding | None":
    """Return tiktoken with the tokenizer's vocabulary and GPT-2's pattern; None if it is not installed."""
    try:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # in the spelling that is fast for its engine
    except ImportError:
        say("tiktoken is not installed, so there is no comparison; install it with: uv sync --extra bench")
        return None
    ordinary = {bytes([byte]) for byte in range(256)} | {left + right for left, right in tokenizer.merges}
    return tiktoken.Encoding(
        name="benchmark",
        pat_str=r50k_pat_str,
        mergeable_ranks={token: token_id for token_id, token in tokenizer.vocab.items() if token in ordinary},
        special_tokens=dict(tokenizer.special_tokens),
    )


def check_ids(tokenizer: "Tokenizer", peer: "tiktoken.Encoding | None", text: str, ids: list[int]) -> None:
    """Make sure that what is timed is the same work: the ids are tiktoken's and decode to the text."""
    assert tokenizer.decode(ids) == text
    if peer is not None and peer.encode(text, allowed_special="all") != ids:
        raise TokenizerError(
            "tiktoken gives other ids for this text, so that times cannot be compared: its ranks are the ids, "
            "and the ids of this tokenizer do not ascend with its merges; measure another tokenizer"
        )


def time_coding(
    tokenizer: "Tokenizer",
    peer: "tiktoken.Encoding | None",
    text: str,
    settings: BenchTokenizerSection,
    update: Update,
) -> Timings:
    """Time encoding and decoding of `text`, ours and tiktoken's in turn."""
    from transformerlm.tokenizer import Tokenizer

    ids = tokenizer.encode(text)
    short = text[:SHORT_CHARS]
    fresh = tokenizer

    def renew() -> None:
        nonlocal fresh
        fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, list(tokenizer.special_tokens))

    actions: dict[str, Callable[[], object]] = {
        "encode_cold": lambda: fresh.encode(text),
        "encode_warm": lambda: fresh.encode(text),
        "decode": lambda: fresh.decode(ids),
        "short_call": lambda: [fresh.encode(short) for _ in range(SHORT_CALLS)],
    }
    if peer is not None:
        actions |= {
            "tiktoken.encode": lambda: peer.encode(text, allowed_special="all"),
            "tiktoken.decode": lambda: peer.decode(ids),
            "tiktoken.short_call": lambda: [peer.encode(short, allowed_special="all") for _ in range(SHORT_CALLS)],
        }
    return repeat(actions, warmup=settings.warmup, repeats=settings.repeats, before=renew, report=update)


def summarise(timings: Timings, *, num_bytes: int, num_tokens: int) -> dict[str, float]:
    """Return the entries of the summary that are measured; keys as in the module's docstring."""
    results: dict[str, float] = {}
    for name, values in timings.items():
        if name.endswith("short_call"):
            results |= spread(f"{name}.us", [1e6 * value / SHORT_CALLS for value in values])
            continue
        results |= spread(f"{name}.seconds", values)
        median = results[f"{name}.seconds.median"]
        results[f"{name}.mb_per_second"] = num_bytes / 1e6 / median
        if not name.startswith("train"):
            results[f"{name}.tokens_per_second"] = num_tokens / median
    for ours, theirs in PEERS.items():
        if theirs in timings:
            results[f"ratio.{ours}"] = statistics.median(timings[theirs]) / statistics.median(timings[ours])
    return results


def _settings(settings: BenchTokenizerSection) -> dict[str, object]:
    return {f"setting.{key}": value for key, value in settings.model_dump(mode="json").items()}


def _print_results(results: Mapping[str, float]) -> None:
    names = ("train.count", "train.merge", "train", "encode_cold", "encode_warm", "decode")
    columns = ["", "seconds", "min", "max", "MB/s", "tokens/s", "tiktoken", "ratio"]
    print_table("tokenizer; MB/s of tiktoken, and our speed over its", columns, [_row(results, name) for name in names])
    theirs = results.get("tiktoken.short_call.us.median")
    beside = f"; tiktoken {theirs:,.1f}" if theirs else ""
    say(f"one call on {SHORT_CHARS} characters: {results['short_call.us.median']:,.1f} microseconds{beside}")


def _row(results: Mapping[str, float], name: str) -> list[str]:
    def number(key: str, digits: int) -> str:
        return f"{results[key]:,.{digits}f}" if key in results else ""

    return [
        name,
        *(number(f"{name}.seconds.{key}", 3) for key in ("median", "min", "max")),
        number(f"{name}.mb_per_second", 2),
        number(f"{name}.tokens_per_second", 0),
        number(f"{PEERS[name]}.mb_per_second", 2) if name in PEERS else "",
        number(f"ratio.{name}", 2),
    ]


if __name__ == "__main__":
    sys.exit(main())
