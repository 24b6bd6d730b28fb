"""The configuration of `transformerlm-bench-tokenizer`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict

from config.schemas import BUILTIN_STORIES, Config
from transformerlm.hparams import Integers, PathSetting, Problem, Section, Seed, Strings

RowGroup = Literal[
    "start", "encode_array", "encode_list", "short_call", "decode", "train", "pathological", "multilingual"
]
PeerName = Literal["gigatoken", "tiktoken", "tokenizers", "rustbpe"]

ROW_GROUPS: tuple[RowGroup, ...] = (
    "start", "encode_array", "encode_list", "short_call", "decode", "train", "pathological", "multilingual",
)  # fmt: skip
SMALLEST_VOCAB = 300  # 256 bytes, the special token, and some merges to measure
PEER_NAMES: tuple[PeerName, ...] = ("gigatoken", "tiktoken", "tokenizers", "rustbpe")


class BenchTextSection(Section):
    """The text and the tokenizer to measure, and how often."""

    sources: Strings = Field(
        default=(),
        description="Text files, globs or folders from whose paragraphs the text is made "
        f"(unset: English of `data`, or else '{BUILTIN_STORIES}', the built-in corpus).",
    )
    data: PathSetting = Field(
        default=Path("../shared/data"),
        description="Folder with tinyshakespeare.txt, wikitext2_valid.txt, udhr_multilingual.txt, gpt2_vocab.json, "
        "gpt2_merges.txt; missing files are left out.",
    )
    tokenizer: PathSetting | None = Field(
        default=None,
        description="Folder of the tokenizer to measure (unset: GPT-2's of `data`, or else one trained on the text).",
    )
    repeats: int = Field(default=3, gt=0, description="Processes for each measurement.")
    seed: Seed = Field(default=0, description="Seed of the texts.")


class BenchTokenizerSection(BenchTextSection):
    """The measurement."""

    megabytes: float = Field(default=100.0, gt=0, description="Text to make, in MB (10^6 bytes).")
    multilingual_megabytes: float = Field(default=10.0, gt=0, description="Multilingual text to make, in MB.")
    pathological_megabytes: float = Field(default=1.0, gt=0, description="Length of a pathological text, in MB.")
    slow_megabytes: float = Field(
        default=4.0,
        gt=0,
        description="Part of a text that the slow `tokenizers` encodes and decodes, in MB.",
    )
    vocab_sizes: Integers = Field(
        default=(10_000, 32_000), min_length=1, description="Entries of the tokenizers that are trained."
    )
    threads: Integers = Field(
        default=(1, 2), min_length=1, description="Numbers of threads, for encoding and training."
    )
    rows: Annotated[tuple[RowGroup, ...], Strict(False)] = Field(
        default=ROW_GROUPS, min_length=1, description=f"What to measure: {', '.join(ROW_GROUPS)}."
    )
    peers: Annotated[tuple[PeerName, ...], Strict(False)] = Field(
        default=PEER_NAMES, description=f"Peers to measure: {', '.join(PEER_NAMES)}; skipped if not installed."
    )
    timeout: int = Field(default=120, gt=0, description="Seconds after which a process is ended.")

    def problems(self) -> Iterator[Problem]:
        if min(self.vocab_sizes) < SMALLEST_VOCAB:
            yield Problem("vocab_sizes", f"must be at least {SMALLEST_VOCAB} each", list(self.vocab_sizes))


class BenchTokenizerConfig(Config):
    """Measure tokenizer training, encoding and decoding, compared with other tokenizers."""

    benchmark: BenchTokenizerSection = Field(default_factory=BenchTokenizerSection)
