"""The rows of the tokenizer benchmark: the operation, the text and the tools of each.

Importing this module loads neither numpy nor a tokenizer.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from config.bench_tokenizer import BenchTokenizerSection

MAIN, MULTILINGUAL, HEAD = "main", "multilingual", ".head"
OURS = "transformerlm"
CODEC_TOOLS = (OURS, "gigatoken", "tiktoken", "tokenizers")
TRAINER_TOOLS = (OURS, "gigatoken", "tokenizers", "rustbpe")
SLOW_TOOL = "tokenizers"

Unit = Literal["MB/s", "µs", "s"]


@dataclass(frozen=True)
class Row:
    """A measurement that several tools take part in.

    Args:
        name: the key in the summary.
        label: what a person reads.
        operation: of a `Cell`.
        text: name of the text.
        tools: who can do it, ours first.
        calls: what a process times, as it names them.
        unit: of the figures in the table.
        threads: how many each tool has.
        vocab_size: of what is trained.
    """

    name: str
    label: str
    operation: str
    text: str
    tools: tuple[str, ...] = CODEC_TOOLS
    calls: tuple[str, ...] = ("cold", "warm")
    unit: Unit = "MB/s"
    threads: int = 1
    vocab_size: int = 0

    def text_of(self, tool: str) -> str:
        """Return the name of the text that `tool` is given: the slow one gets the head of a long text."""
        long = self.text in (MAIN, MULTILINGUAL) and self.operation in ("encode_array", "encode_list", *_DECODING)
        return self.text + HEAD if tool == SLOW_TOOL and long else self.text


_DECODING = {"decode_bytes": "decode array to bytes", "decode_str": "decode list to str"}
PATHOLOGICAL = {
    "letter": "one letter",
    "newlines": "newlines",
    "digits": "random digits",
    "letters": "random letters",
    "cjk": "CJK, no spaces",
}
"""The kinds of `pathological_text`, and what a person reads."""


def plan(settings: BenchTokenizerSection, texts: Collection[str]) -> list[Row]:
    """Return the rows to measure, in the order of the table; those whose text is not among `texts` are left out."""
    groups: Mapping[str, Iterator[Row]] = {
        "start": _start_rows(),
        "encode_array": _array_rows(settings.threads),
        "encode_list": iter([Row("encode_list", "encode str to list", "encode_list", MAIN)]),
        "short_call": iter([Row("short_call", "a call on 12 characters", "short_call", MAIN, unit="µs")]),
        "decode": (Row(name, label, name, MAIN) for name, label in _DECODING.items()),
        "train": _training_rows(settings),
        "pathological": (
            # Only cold: warm would be one look-up of one pre-token where a tokenizer remembers any length.
            Row(f"pathological.{kind}", label, "encode_array", f"pathological.{kind}", calls=("cold",))
            for kind, label in PATHOLOGICAL.items()
        ),
        "multilingual": iter([Row("multilingual", "multilingual, to array", "encode_array", MULTILINGUAL)]),
    }
    rows = [row for group, rows in groups.items() if group in settings.rows for row in rows]
    return [row for row in rows if row.text in texts]


def _start_rows() -> Iterator[Row]:
    for name, words in (("compile", "no kernels on disk"), ("load", "kernels on disk")):
        calls = ("import", "construct", "encode", "train")
        yield Row(f"start.{name}", f"start, {words}", "start", MAIN, (OURS,), calls, "s")


def _array_rows(threads: Sequence[int]) -> Iterator[Row]:
    for count in threads:
        label = f"encode to array, {_threads(count)}"
        yield Row(f"encode_array.{count}", label, "encode_array", MAIN, threads=count)


def _training_rows(settings: BenchTokenizerSection) -> Iterator[Row]:
    for size in settings.vocab_sizes:
        for count in settings.threads:
            yield Row(
                f"train.{size}.{count}",
                f"train {size:,}, {_threads(count)}",
                "train",
                MAIN,
                tools=TRAINER_TOOLS,
                calls=("cold",),
                unit="s",
                threads=count,
                vocab_size=size,
            )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
