"""`transformerlm-bench-tokenizer`: tokenizer training, encoding and decoding, compared with other tokenizers.

A text is made from the sources (`tokenizer_text`), and each measurement is taken in fresh processes (`tokenizer_cell`),
all tools in turn (`tokenizer_tools`). A figure is the median of the processes. Encoding and decoding are timed twice in
each: cold, by a tokenizer that has seen nothing, and warm, the same once more. A process is confined to one core per
thread. Start-up costs are timed separately, under `start`, and are not part of any other figure.

Times are compared only between tools that give the same ids and the same text, which each process checks after timing.
A peer that is not installed is reported and skipped; one that crashes or times out is reported in its cell of the
table.

stdout gets one line of JSON with flat keys. MB are 10^6 bytes of UTF-8.

    benchmark, date, machine.*, setting.*     settings and machine
    version.NAME                              of numba and the peers; null for a peer that is not installed
    tokenizer.vocab_size                      of the tokenizer that encodes and decodes
    text.NAME.{bytes,tokens}                  of each text: main, multilingual, pathological.KIND; NAME.head, the
    text.NAME.distinct_pretokens                part of it given to the slow peer
    ROW.TOOL.CALL.seconds.{median,min,max}    ROW and CALL as below; TOOL is transformerlm or a peer
    ROW.TOOL.CALL.mb_per_second               by the median, of the text that the tool was given
    ROW.TOOL.peak_memory_mb                   resident, of the whole process with interpreter and text; median
    ROW.TOOL.memory_before_mb                 the same when the first timed call begins
    ROW.TOOL.status                           only if it cannot be compared: "timeout", "other ids", "failed: …"
    ROW.ratio.PEER.CALL                       our speed over the peer's: above 1 we are faster
    train.SIZE.THREADS.PEER.shared_tokens     share of the tokens it learned that we learned too

    ROW                                       CALL
    start.compile, start.load                 import: the package; construct: a tokenizer from its files; encode,
                                                train: compiling their kernels or loading them from disk
    encode_array.THREADS                      cold, warm: bytes (or str) to an array of ids
    encode_list                               cold, warm: str to a list of ids; one thread, as all below but training
    short_call                                cold, warm: one of 10,000 different calls on 12 characters
    decode_bytes, decode_str                  cold, warm: array to bytes, list to str
    train.SIZE.THREADS                        cold: a text file to a vocabulary of SIZE entries
    pathological.KIND                         cold: encode_array of one pre-token of the kind
    multilingual                              cold, warm: encode_array of texts in many scripts
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.runner import Outcome, describe_run, print_summary, run_cell, take_turns, versions_of
from benchmarking.tokenizer_cell import SHORT_CHARS, Cell
from benchmarking.tokenizer_rows import HEAD, MAIN, MULTILINGUAL, OURS, PATHOLOGICAL, Row, plan
from benchmarking.tokenizer_table import print_results, say_row, summarise
from cli.progress import progress_bar, say
from cli.utils import EXIT_OK, run_command
from config.bench_tokenizer import PEER_NAMES, BenchTextSection, BenchTokenizerConfig, BenchTokenizerSection
from config.schemas import BUILTIN_STORIES
from transformerlm.hparams import END_OF_TEXT
from transformerlm.utils.errors import DataError

EPILOG = (
    "example: transformerlm-bench-tokenizer --config config/resources/bench_tokenizer.toml "
    "--benchmark.rows encode_array short_call"
)
PREPARE_TIMEOUT = 600  # seconds; it is not timed, and may compile kernels
ENGLISH = ("tinyshakespeare.txt", "wikitext2_valid.txt")
MULTILINGUAL_FILE = "udhr_multilingual.txt"
GPT2_VOCAB, GPT2_MERGES = "gpt2_vocab.json", "gpt2_merges.txt"


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
    settings = config.benchmark
    versions = versions_of(dict.fromkeys(("numba", *PEER_NAMES)))
    tools = [OURS, *(peer for peer in settings.peers if versions[peer])]
    head = describe_run("tokenizer", settings, versions)
    with tempfile.TemporaryDirectory(prefix="bench-tokenizer-") as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        save_tokenizer(settings, folder / "tokenizer")
        say("making the texts")
        write_texts(settings, folder)
        preparation = Cell(
            "prepare", OURS, threads=max(settings.threads), text=name, tokenizer=f"{name}/tokenizer",
            vocab_size=settings.vocab_sizes[-1],
        )  # fmt: skip
        facts = run_cell(preparation, timeout=PREPARE_TIMEOUT)
        rows = plan(settings, facts["texts"])
        text_bytes = {text: fact["bytes"] for text, fact in facts["texts"].items()}
        results: dict[str, object] = {}
        with progress_bar("measuring") as update:
            for number, row in enumerate(rows):
                outcomes = measure_row(
                    row, tools, settings, folder, lambda words, n=number: update(n / len(rows), words)
                )
                results |= summarise(row, outcomes, text_bytes)
                say_row(row, results, tools)
    _describe_text(facts["texts"][MAIN], text_bytes[MAIN + HEAD])
    print_results(rows, results, tools)
    print_summary(
        {
            **head,
            "tokenizer.vocab_size": facts["vocab_size"],
            **{f"text.{text}.{key}": value for text, fact in facts["texts"].items() for key, value in fact.items()},
            **results,
        }
    )
    return EXIT_OK


def save_tokenizer(settings: BenchTextSection, folder: Path) -> None:
    """Write the tokenizer to measure into `folder`, or nothing, if it is to be trained on the text."""
    from transformerlm.tokenizer import Tokenizer

    vocab, merges = settings.data / GPT2_VOCAB, settings.data / GPT2_MERGES
    if settings.tokenizer is not None:
        Tokenizer.load(settings.tokenizer).save(folder)
    elif vocab.exists() and merges.exists():
        Tokenizer.from_files(vocab, merges, [END_OF_TEXT]).save(folder)


def write_texts(settings: BenchTokenizerSection, folder: Path) -> None:
    """Write each text that `plan` names to a file in `folder`. Raises `DataError` if the sources give none."""
    from benchmarking.tokenizer_text import build_text, cut_text, pathological_text

    sources = [_read_head(path, settings.megabytes) for path in find_texts(settings)]
    texts = {MAIN: build_text(sources, round(settings.megabytes * 1e6), settings.seed)}
    if len(texts[MAIN]) < SHORT_CHARS:
        raise DataError("the sources hold no words; give files of text")
    multilingual = settings.data / MULTILINGUAL_FILE
    if multilingual.exists():
        languages = multilingual.read_bytes().decode("utf-8").split(END_OF_TEXT)
        texts[MULTILINGUAL] = build_text(languages, round(settings.multilingual_megabytes * 1e6), settings.seed)
    elif "multilingual" in settings.rows:
        say(f"{multilingual} is missing, and the multilingual text with it")
    for name in list(texts):
        texts[name + HEAD] = cut_text(texts[name], round(settings.slow_megabytes * 1e6))[0]
    for kind in PATHOLOGICAL:
        texts[f"pathological.{kind}"] = pathological_text(
            kind, round(settings.pathological_megabytes * 1e6), settings.seed
        )
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode("utf-8"))


def find_texts(settings: BenchTextSection) -> list[Path]:
    """Return the files whose paragraphs make the text."""
    from cli.sources import find_sources

    english = [str(settings.data / name) for name in ENGLISH if (settings.data / name).exists()]
    return [Path(file.name) for file in find_sources(settings.sources or english or [BUILTIN_STORIES])]


def _read_head(path: Path, megabytes: float) -> str:
    from transformerlm.utils.text_files import read_text

    parts, length = [], 0.0
    for part in read_text(path):
        parts.append(part)
        length += len(part) / 1e6
        if length >= megabytes:
            break
    return "".join(parts)


def measure_row(
    row: Row, tools: Sequence[str], settings: BenchTokenizerSection, folder: Path, report: Callable[[str], None]
) -> dict[str, Outcome]:
    """Run the processes of a row. `folder` holds the texts and the tokenizer."""

    def run(tool: str, repeat: int) -> dict[str, Any]:
        report(f"{row.label}: {tool}")
        text = folder / row.text_of(tool)
        cell = Cell(
            row.operation, tool, row.threads, f"{text}.txt", f"{text}.npy", f"{folder}/tokenizer", row.vocab_size,
            settings.seed,
        )  # fmt: skip
        environment = {}
        if row.operation == "start":
            # The first of these rows finds the folder empty, the second finds what the first one left. Kernels are
            # also looked for beside the temporary files.
            kernels = folder / "kernels" / str(repeat)
            kernels.mkdir(parents=True, exist_ok=True)
            environment = {"NUMBA_CACHE_DIR": str(kernels), "TMPDIR": str(kernels)}
        return run_cell(cell, timeout=settings.timeout, environment=environment)

    return take_turns(row.label, [tool for tool in row.tools if tool in tools], settings.repeats, run)


def _describe_text(fact: Mapping[str, int], head_bytes: int) -> None:
    say(
        f"text: {fact['bytes'] / 1e6:.1f} MB, {fact['tokens']:,} tokens, {fact['distinct_pretokens']:,} distinct "
        f"pre-tokens; tokenizers encodes and decodes the first {head_bytes / 1e6:.1f} MB of it"
    )


if __name__ == "__main__":
    sys.exit(main())
