"""The base of all configurations, and the tables that are shared by commands or unknown to the library."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from transformerlm.hparams import END_OF_TEXT, DeviceName, DtypeName, PathSetting, Problem, Section, Strings

BUILTIN_STORIES = "builtin:stories"
"""The source that names the corpus which this project generates itself."""


class Config(BaseModel):
    """What one command is told: a few tables of settings, each a `Section`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot work between tables; keys are `table.key`. Tables list their own."""
        return iter(())


class InputSection(Section):
    """The text."""

    sources: Strings = Field(
        min_length=1,
        description=f"Text files, globs or folders, also .gz, .xz, .zst; '{BUILTIN_STORIES}' is the built-in corpus.",
    )


class TokenizerTrainingSection(Section):
    """Byte-level BPE."""

    vocab_size: int = Field(
        default=4096, gt=0, description="Entries: 256 bytes, the merges and the special tokens together."
    )
    special_tokens: Strings = Field(default=(END_OF_TEXT,), description="Tokens that are never split or merged.")
    output: PathSetting = Field(description="Folder for vocab.json and merges.txt.")
    workers: int = Field(default=0, ge=0, description="Threads that count pre-tokens (0: one a core).")

    def problems(self) -> Iterator[Problem]:
        smallest = 256 + len(self.special_tokens)
        if self.vocab_size < smallest:
            yield Problem(
                "vocab_size",
                f"must be at least {smallest}: 256 bytes and {len(self.special_tokens)} special tokens",
                self.vocab_size,
            )
        tokens = self.special_tokens
        if len(set(tokens)) < len(tokens) or any(len(token.encode("utf-8")) < 2 for token in tokens):
            yield Problem("special_tokens", "must be different and of at least two bytes", list(tokens))


class DatasetInputSection(InputSection):
    """The text, and how it falls into documents."""

    valid_sources: Strings = Field(
        default=(), description="Text for validation (unset: valid_fraction of the documents of `sources`)."
    )
    valid_fraction: float = Field(
        default=0.01, ge=0, lt=1, description="Share of documents for validation, chosen by a hash of the document."
    )
    separator: str = Field(
        default=END_OF_TEXT, min_length=1, description="Text that stands between two documents of a file."
    )


class DatasetOutputSection(Section):
    """The token files."""

    tokenizer: PathSetting = Field(description="Folder of the tokenizer (made by transformerlm-train-tokenizer).")
    train: PathSetting = Field(description="Token file for training; its sidecar is this name with .json added.")
    valid: PathSetting | None = Field(default=None, description="Token file for validation.")
    workers: int = Field(default=0, ge=0, description="Processes that encode (0: one a core).")

    def problems(self) -> Iterator[Problem]:
        if self.valid is not None and self.valid == self.train:
            yield Problem("valid", "must be another file than train", str(self.valid))


class ExecutionSection(Section):
    """Where a model runs."""

    device: DeviceName = Field(default="auto", description="auto | cpu | cuda | mps.")
    dtype: DtypeName = Field(
        default="auto",
        description="auto | float32 | bfloat16: type of the weights; auto is bfloat16 on CUDA, float32 elsewhere.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads (0: torch's own choice).")
