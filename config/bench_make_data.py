"""The configuration of `transformerlm-bench-make-data`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict

from config.schemas import BUILTIN_STORIES, Config
from transformerlm.hparams import PathSetting, Section, Seed, Strings

ToolName = Literal["transformerlm", "tokenizer", "tiktoken", "tokenizers"]

OURS: ToolName = "transformerlm"
ALONE: ToolName = "tokenizer"
PEERS: tuple[ToolName, ...] = ("tiktoken", "tokenizers")

Megabytes = Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Strict(False)]


class BenchMakeDataSection(Section):
    """The measurement."""

    sources: Strings = Field(
        default=(),
        description="Text files, globs or folders from whose paragraphs the text is made "
        f"(unset: English of `data`, or else '{BUILTIN_STORIES}', the built-in corpus).",
    )
    data: PathSetting = Field(
        default=Path("../shared/data"),
        description="Folder with tinyshakespeare.txt, wikitext2_valid.txt, gpt2_vocab.json, gpt2_merges.txt; "
        "what is missing is done without.",
    )
    tokenizer: PathSetting | None = Field(
        default=None, description="Folder of the tokenizer (unset: GPT-2's of `data`, or else one trained on the text)."
    )
    megabytes: Megabytes = Field(
        default=(50, 100, 500), min_length=1, description="Sizes of text to make token files of, in MB (10^6 bytes)."
    )
    peer_megabytes: int = Field(default=100, gt=0, description="Peers are given texts up to this size, in MB.")
    document_bytes: int = Field(default=2000, gt=0, description="Length of a document, about.")
    peers: Annotated[tuple[ToolName, ...], Strict(False)] = Field(
        default=PEERS, description=f"Who to measure beside us: {', '.join(PEERS)}; skipped if not installed."
    )
    threads: int = Field(default=2, gt=0, description="Cores and threads.")
    repeats: int = Field(default=3, gt=0, description="Processes for each measurement.")
    timeout: int = Field(default=600, gt=0, description="Seconds after which a process is ended.")
    seed: Seed = Field(default=0, description="Of the text.")


class BenchMakeDataConfig(Config):
    """Measure how fast text becomes token files, beside other tokenizers and the tokenizer alone."""

    benchmark: BenchMakeDataSection = Field(default_factory=BenchMakeDataSection)
