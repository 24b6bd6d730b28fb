"""What is to be built: everything on which the result depends, checked before any work is done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from databuilder.build_directory import work_folder
from databuilder.job import expected_id_bytes
from databuilder.pieces import Reading
from databuilder.sorted_runs import SPOOL_VERSION, TRAIN, VALID
from databuilder.sources import SourceFile, describe_source, identity
from databuilder.splits import PART_BYTES, Part, cut_into_parts
from transformerlm.token_files.index import FORMAT_VERSION
from transformerlm.tokenizer import Tokenizer
from transformerlm.utils.errors import DataError, require_list
from transformerlm.utils.file_content import is_compressed_name
from transformerlm.utils.files import require_free_space
from transformerlm.utils.text_files import is_url

SHARD_TOKENS = 100_000_000

PARTS_OF_A_CORPUS = 64
"""Into so many parts a small corpus is cut, so that all workers have something to do to the end."""
SMALLEST_PART = 4 << 20

EXPANSION = 4
"""Bytes of text in a byte of a compressed file, about."""

Source = Path | str | SourceFile


def as_files(sources: Iterable[Source]) -> list[SourceFile]:
    """Return what there is to know of each source. Raises `DataError` if one is missing."""
    require_list("sources", sources)
    return [source if isinstance(source, SourceFile) else describe_source(source) for source in sources]


@dataclass(frozen=True)
class Plan:
    """All that the result depends on."""

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
        """Return about how much text it is."""
        return sum(file.num_bytes * (EXPANSION if _is_packed(file) else 1) for file in self.all_files)

    def parts(self) -> list[Part]:
        """Return what one task reads each; those of validation sources come last."""
        size = sum(file.num_bytes for file in self.all_files)
        part_bytes = min(max(size // PARTS_OF_A_CORPUS, SMALLEST_PART), PART_BYTES)
        return cut_into_parts(self.all_files, part_bytes=part_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as it is compared with that of an earlier build."""
        return {
            "sources": [asdict(file) for file in self.files],
            "valid_sources": [asdict(file) for file in self.valid_files],
            "tokenizer": self.tokenizer.sha256(),
            "outputs": [str(output) for output in self.outputs.values()],
            **self.split(),
            "shard_tokens": self.shard_tokens,
            "format": f"spools {SPOOL_VERSION}, token files {FORMAT_VERSION}",
        }

    def split(self) -> dict[str, Any]:
        """Return how documents are found, chosen and ordered, for plan and sidecars."""
        return {
            **asdict(self.reading), "valid_fraction": self.valid_fraction, "shuffle": self.shuffle, "seed": self.seed,
        }  # fmt: skip

    def check(self) -> None:
        """Raise `DataError` for what can be known before any work is done."""
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
        needed = 2 * expected_id_bytes(self.text_bytes(), self.tokenizer.vocab_size)  # once in spools, once in shards
        folder = work_folder(self.outputs[TRAIN])
        there = sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0
        require_free_space(folder.parent, max(0, needed - there), "the data")


def _is_packed(file: SourceFile) -> bool:
    return file.format == "parquet" or is_compressed_name(file.name)
