"""The base class of all configurations, and the tables used by several commands or only by the application."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from transformerlm.hparams import (
    BUILTIN_STORIES,
    END_OF_TEXT,
    DeviceName,
    DtypeName,
    PathSetting,
    Problem,
    Section,
    Seed,
    Strings,
)


class Config(BaseModel):
    """The settings of one command: several tables, each a `Section`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def problems(self) -> Iterator[Problem]:
        """Yield conflicts between tables; keys are `table.key`. Each table yields its own problems."""
        return iter(())

    @classmethod
    def completed_later(cls, tables: Mapping[str, Any]) -> frozenset[str]:  # noqa: ARG003
        """Return the tables to validate later, because a file that the settings name completes them."""
        return frozenset()


class InputSection(Section):
    """The text, and how it is split into documents."""

    sources: Strings = Field(
        min_length=1,
        description="Files, globs, folders or URLs (https://, s3://, hf://datasets/…), also .gz, .bz2, .xz, .zst; "
        f"'{BUILTIN_STORIES}' is the built-in corpus.",
    )
    format: Literal["auto", "text", "jsonl", "parquet"] = Field(
        default="auto",
        description="auto | text | jsonl | parquet; auto goes by each file's name, and what it does not know is text.",
    )
    separator: str = Field(
        default=END_OF_TEXT, min_length=1, description="text: what stands between two documents of a file."
    )
    text_field: str = Field(default="text", min_length=1, description="jsonl, parquet: the field that holds the text.")
    errors: Literal["strict", "replace", "skip"] = Field(
        default="strict",
        description="strict | replace | skip: text that is not UTF-8 is an error, becomes U+FFFD, or its document is "
        "left out.",
    )
    skip_null: bool = Field(
        default=False, description="jsonl, parquet: leave out records whose text is null (false: they are an error)."
    )


class WorkSection(Section):
    """Where tasks run."""

    workers: int = Field(
        default=0, ge=0, description="Threads, or tasks of a cluster at a time (0: as many as there are cores)."
    )
    engine: Literal["local", "dask"] = Field(
        default="local", description="local | dask: threads of this process, or a Dask cluster (extra `dask`)."
    )
    scheduler_address: str | None = Field(
        default=None,
        min_length=1,
        description="dask: address of the scheduler, as tcp://host:8786 (unset: `workers` processes of this machine).",
    )

    def problems(self) -> Iterator[Problem]:
        if self.scheduler_address is not None and self.engine != "dask":
            yield Problem("engine", "must be dask, since scheduler_address is given", self.engine)


class TokenizerTrainingSection(WorkSection):
    """Byte-level BPE."""

    vocab_size: int = Field(
        default=4096, gt=0, description="Entries: 256 bytes, the merges and the special tokens together."
    )
    special_tokens: Strings = Field(default=(END_OF_TEXT,), description="Tokens that are never split or merged.")
    output: PathSetting = Field(description="Folder for vocab.json and merges.txt.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
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
    """The text, and the part of it used for validation."""

    valid_sources: Strings = Field(
        default=(), description="Text for validation (unset: valid_fraction of the documents of `sources`)."
    )
    valid_fraction: float = Field(
        default=0.01, ge=0, lt=1, description="Share of documents for validation, chosen by a hash of the document."
    )


class DatasetOutputSection(WorkSection):
    """The token files."""

    tokenizer: PathSetting = Field(description="Folder of the tokenizer, or a run or checkpoint that holds one.")
    train: PathSetting = Field(description="Token file for training; its sidecar is this name with .json added.")
    valid: PathSetting | None = Field(default=None, description="Token file for validation.")
    shuffle: bool = Field(
        default=True, description="Shuffle the documents (false: they stay in the order of the sources)."
    )
    seed: Seed = Field(default=0, description="Of the shuffling.")
    shard_tokens: int = Field(
        default=100_000_000, gt=0, description="Tokens in a file; what has more becomes several, with numbers."
    )

    def problems(self) -> Iterator[Problem]:
        if self.valid is not None and self.valid == self.train:
            yield Problem("valid", "must be another file than train", str(self.valid))
        yield from super().problems()


class ExecutionSection(Section):
    """Where a model runs."""

    device: DeviceName = Field(default="auto", description="auto | cpu | cuda | mps.")
    dtype: DtypeName = Field(
        default="auto",
        description="auto | float32 | bfloat16: type of the weights; auto is bfloat16 on CUDA, float32 elsewhere.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads (0: torch's own choice).")


class DecodingSection(ExecutionSection):
    """Where a model runs, and how decoding is made faster."""

    compile: bool = Field(
        default=False,
        description="Compile the decoding steps first: a minute or two once, then seconds; worth it for many tokens.",
    )
    int8: bool = Field(
        default=False,
        description="Decode with weights rounded to bytes, which is faster on CPUs; elsewhere only with compile.",
    )
