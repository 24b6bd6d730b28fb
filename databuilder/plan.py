"""The plan of a build: everything the result depends on, checked before any work is done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from databuilder.build_directory import build_folder
from databuilder.job import expected_id_bytes
from databuilder.pieces import Reading
from databuilder.sorted_runs import RUNS_VERSION, TRAIN, VALID
from databuilder.source_file import InputSplit, SourceFile
from databuilder.sources import describe_source, identity
from databuilder.splits import SPLIT_BYTES, cut_into_splits
from transformerlm.token_files.index import FORMAT_VERSION
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import DataError, require_list
from transformerlm.utils.file_content import is_compressed_name
from transformerlm.utils.files import require_free_space
from transformerlm.utils.text_files import is_url

SHARD_TOKENS = 100_000_000

MIN_SPLITS = 64
"""A small corpus is cut into about this many input splits, so that all workers are busy to the end."""
MIN_SPLIT_BYTES = 4 << 20

EXPANSION = 4
"""Approximate bytes of text per byte of a compressed file."""

Source = Path | str | SourceFile


def as_files(sources: Iterable[Source]) -> list[SourceFile]:
    """Return a description of each source. Raises `DataError` if one is missing."""
    require_list("sources", sources)
    return [source if isinstance(source, SourceFile) else describe_source(source) for source in sources]


@dataclass(frozen=True)
class Plan:
    """Everything the result of a build depends on."""

    files: Sequence[SourceFile]
    valid_files: Sequence[SourceFile]
    tokenizer: Tokenizer
    outputs: Mapping[int, Path]
    valid_fraction: float
    reading: Reading
    shuffle: bool
    seed: int
    shard_tokens: int

    @property
    def all_files(self) -> list[SourceFile]:
        return [*self.files, *self.valid_files]

    def files_of(self, side: int) -> Sequence[SourceFile]:
        return self.valid_files if side == VALID and self.valid_files else self.files

    def text_bytes(self) -> int:
        """Return the approximate size of all the text."""
        return sum(file.num_bytes * (EXPANSION if _is_packed(file) else 1) for file in self.all_files)

    def input_splits(self) -> list[InputSplit]:
        """Return the input splits, validation sources last; a task reads one of them."""
        size = sum(file.num_bytes for file in self.all_files)
        split_bytes = min(max(size // MIN_SPLITS, MIN_SPLIT_BYTES), SPLIT_BYTES)
        return cut_into_splits(self.all_files, split_bytes=split_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON, for comparison with the plan of an earlier build."""
        return {
            "sources": [asdict(file) for file in self.files],
            "valid_sources": [asdict(file) for file in self.valid_files],
            "tokenizer": self.tokenizer.sha256(),
            "outputs": [str(output) for output in self.outputs.values()],
            **self.split(),
            "shard_tokens": self.shard_tokens,
            "format": f"spools {RUNS_VERSION}, token files {FORMAT_VERSION}",
        }

    def split(self) -> dict[str, Any]:
        """Return the settings that find, select and order documents, for the plan and the sidecars."""
        return {
            **asdict(self.reading), "valid_fraction": self.valid_fraction, "shuffle": self.shuffle, "seed": self.seed,
        }  # fmt: skip

    def check(self) -> None:
        """Raise `DataError` for problems that are known before any work is done."""
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer has no {self.tokenizer.settings.end_of_text} token; train it with that special token"
            )
        inputs = {Path(file.name).resolve() for file in self.all_files if not is_url(file.name)}
        for output in self.outputs.values():
            if output.is_dir():
                raise DataError(f"{output}: is a folder; name a file in it, {output / 'train.dat'} for example")
            if output.resolve() in inputs:
                raise DataError(f"{output}: is one of the sources, and would be overwritten; choose another output")
        train_files = {identity(file.name) for file in self.files}
        for file in self.valid_files:
            if identity(file.name) in train_files:
                raise DataError(f"{file.name}: is given both for training and for validation; leave it out of one")
        if not 0 <= self.valid_fraction < 1:
            raise DataError(f"valid_fraction must be at least 0 and below 1 (got {self.valid_fraction})")
        needed = 2 * expected_id_bytes(self.text_bytes(), self.tokenizer.vocab_size)  # once in runs, once in shards
        folder = build_folder(self.outputs[TRAIN])
        there = sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0
        require_free_space(folder.parent, max(0, needed - there), "the data")


def _is_packed(file: SourceFile) -> bool:
    return file.format == "parquet" or is_compressed_name(file.name)
