"""The configuration of `transformerlm-bench-make-data`."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from config.bench_tokenizer import BenchTextSection
from config.schemas import Config

ToolName = Literal["transformerlm", "tokenizer", "tiktoken", "tokenizers"]

OURS: ToolName = "transformerlm"
ALONE: ToolName = "tokenizer"
PEERS: tuple[ToolName, ...] = ("tiktoken", "tokenizers")

Megabytes = Annotated[tuple[Annotated[int, Strict(), Field(gt=0)], ...], Strict(False)]


class BenchMakeDataSection(BenchTextSection):
    """The measurement."""

    megabytes: Megabytes = Field(
        default=(50, 100, 500), min_length=1, description="Sizes of text to make token files of, in MB (10^6 bytes)."
    )
    peer_megabytes: int = Field(default=100, gt=0, description="Peers are given texts up to this size, in MB.")
    document_bytes: int = Field(default=2000, gt=0, description="Length of a document, about.")
    peers: Annotated[tuple[ToolName, ...], Strict(False)] = Field(
        default=PEERS, description=f"Peers to measure: {', '.join(PEERS)}; skipped if not installed."
    )
    threads: int = Field(default=2, gt=0, description="Cores and threads.")
    timeout: int = Field(default=600, gt=0, description="Seconds after which a process is ended.")


class BenchMakeDataConfig(Config):
    """Measure how fast text becomes token files, compared with other tokenizers and the tokenizer alone."""

    benchmark: BenchMakeDataSection = Field(default_factory=BenchMakeDataSection)
