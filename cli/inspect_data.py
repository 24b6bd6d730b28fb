"""`transformerlm-inspect-data`: show the contents of a token file, and what a training run sees of it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.beginning import Beginning
from cli.data import batch_loader, open_datasets, require_tokenizer
from cli.passages import Passage, visible
from cli.progress import progress_bar
from cli.utils import EXIT_OK, Invocation, run_command
from config.inspect_data import InspectDataConfig, InspectSection
from config.io import load_config
from config.train import TrainConfig
from transformerlm.hparams import ModelHparams
from transformerlm.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformerlm.token_files.documents import Document
    from transformerlm.token_files.index import TokenFileInfo
    from transformerlm.token_files.stream import TokenStream
    from transformerlm.tokenizer import Tokenizer
    from transformerlm.training import BatchLoader, TokenDataset

EPILOG = """what a training sees: --data data/stories/train.dat --inspect.train-config config/resources/train.toml
one of its batches:   … --inspect.train-config runs/stories/config.toml --inspect.step 3
any text of the data: … --inspect.tokenizer data/stories/tokenizer --inspect.window 7
"""


def main() -> int:
    """Run the command; return its exit code."""
    return run_command(InspectDataConfig, _run, prog="transformerlm-inspect-data", epilog=EPILOG)


def _run(invocation: Invocation[InspectDataConfig]) -> int:
    findings = inspect_data(invocation.config.inspect)
    if invocation.config.inspect.format == "json":
        print(json.dumps(findings.to_json(), allow_nan=False))
    else:
        for line in findings.lines():
            print(line)
    return EXIT_OK


@dataclass(frozen=True)
class Findings:
    """The results of inspecting a token file."""

    path: Path
    info: "TokenFileInfo"
    longest: "list[Document]"
    training: "Training | None"
    window: Passage | None
    """The requested window."""
    batch: tuple[Passage, ...]
    """The rows of the requested step's batch."""
    settings: InspectSection

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, without parts that were not requested."""
        info = self.info
        shards = [{"name": shard.name, "tokens": shard.num_tokens} for shard in info.shards]
        found: dict[str, Any] = {
            "data": str(self.path),
            "tokens": info.num_tokens,
            "documents": info.num_documents,
            "text_bytes": info.num_text_bytes,
            "bytes_per_token": _ratio(info.num_text_bytes, info.num_tokens),
            "tokens_per_byte": _ratio(info.num_tokens, info.num_text_bytes),
            "vocab_size": info.vocab_size,
            "dtype": info.dtype,
            "shards": shards or [{"name": self.path.name, "tokens": info.num_tokens}],
            "text": info.text,
            "longest_documents": [document._asdict() for document in self.longest],
        }
        if self.training is not None:
            found["epochs"] = self.training.epochs(self.path)
        if self.window is not None:
            found["window"] = {"number": self.settings.window, **self.window.to_json()}
        if self.batch:
            found["batch"] = {"step": self.settings.step, "rows": [row.to_json() for row in self.batch]}
        return found

    def lines(self) -> Iterator[str]:
        """Yield the same as human-readable lines."""
        info = self.info
        yield f"{self.path}"
        yield _line("tokens", f"{info.num_tokens:,}")
        yield _line("documents", f"{info.num_documents:,}")
        yield _line("bytes of text", f"{info.num_text_bytes:,}")
        yield _line("bytes a token", f"{_ratio(info.num_text_bytes, info.num_tokens):.3f}")
        yield _line("tokens a byte", f"{_ratio(info.num_tokens, info.num_text_bytes):.3f}")
        yield _line("vocabulary", f"{info.vocab_size:,} entries, ids of type {info.dtype}")
        yield _line("shards", f"{max(1, len(info.shards)):,}")
        if info.text:
            yield "  of the text that all of it was made from:"
        for name, count in info.text.items():
            yield _line(f"  {visible(name).replace('_', ' ')}", f"{count:,}")
        if self.training is not None:
            yield _line("epochs", self.training.text(self.path))
        for document in self.longest:
            yield _line("long document", f"{document.num_tokens:,} tokens from {document.begin:,} on")
        if self.window is not None:
            yield from self.window.lines(f"window {self.settings.window:,}")
        for number, row in enumerate(self.batch):
            yield from row.lines(f"step {self.settings.step:,}, row {number:,}")


@dataclass(frozen=True)
class Training:
    """A training configuration with its training data."""

    path: Path
    config: TrainConfig
    datasets: "tuple[TokenDataset, ...]"
    loader: "BatchLoader"

    @classmethod
    def open(cls, path: Path) -> "Training":
        """Read the configuration and open its training data. Raises `ConfigError` and `DataError`."""
        import torch

        from transformerlm.distributed.group import World

        config = load_config(TrainConfig, path)
        beginning = Beginning.find(config, World())
        if beginning is not None:
            config = beginning.completed(config, origin=str(path))
        datasets = tuple(open_datasets(config.data.train, config, verify=False))
        return cls(path, config, datasets, batch_loader(config, datasets, device=torch.device("cpu")))

    def epochs(self, data: Path) -> float | None:
        """Return the number of epochs over `data`; None if it is not part of the training data."""
        epochs = self.loader.epochs(self.config.training.steps)
        names = [dataset.path.resolve() for dataset in self.datasets]
        return epochs[names.index(data.resolve())] if data.resolve() in names else None

    def text(self, data: Path) -> str:
        """Return the same as human-readable text."""
        epochs = self.epochs(data)
        if epochs is None:
            return f"none: {self.path} trains on {', '.join(str(path) for path in self.config.data.train)}"
        training, length = self.config.training, self.config.model.context_length
        return (
            f"{epochs:.2f} in {training.steps:,} steps of {training.batch_size:,} windows of {length:,} ({self.path})"
        )

    def batch(self, step: int, tokenizer: "Tokenizer") -> tuple[Passage, ...]:
        """Return the rows of a step's batch: the inputs and the last target."""
        numbers, starts = self.loader.places(step - 1)
        rows = zip((self.datasets[number] for number in numbers.tolist()), starts.tolist(), strict=True)
        return tuple(
            Passage.read(
                dataset.path,
                dataset.tokens,
                tokenizer,
                begin=begin,
                num_tokens=self.config.model.context_length + 1,
                end_of_text_id=dataset.info.end_of_text_id,
            )
            for dataset, begin in rows
        )


def inspect_data(settings: InspectSection) -> Findings:
    """Inspect a token file; all settings are checked before any long read."""
    from transformerlm.token_files.documents import document_begins, longest_documents
    from transformerlm.token_files.index import read_info
    from transformerlm.token_files.stream import TokenStream

    info = read_info(settings.data)
    stream = TokenStream.open(settings.data, info)
    training = None if settings.train_config is None else Training.open(settings.train_config)
    tokenizer = _load_tokenizer(settings, info, training)
    window = None
    if settings.window is not None and tokenizer is not None:
        window = _window(settings, info, stream, training, tokenizer)
    batch: tuple[Passage, ...] = ()
    if settings.step is not None and training is not None and tokenizer is not None:
        _check_step(settings, training)
        batch = training.batch(settings.step, tokenizer)
    longest: list[Document] = []
    if settings.longest and (info.end_of_text_id is not None or info.shards):
        with progress_bar("reading") as update:
            begins = document_begins(settings.data, info, stream, lambda share: update(share, ""))
            longest = longest_documents(begins, info.num_tokens, settings.longest)
    return Findings(settings.data, info, longest, training, window, batch, settings)


def _load_tokenizer(settings: InspectSection, info: "TokenFileInfo", training: Training | None) -> "Tokenizer | None":
    """Return the configured tokenizer or None; raise `DataError` if the data was made with another."""
    from transformerlm.tokenizer import Tokenizer

    if settings.tokenizer is not None:
        folder, setting = settings.tokenizer, "inspect.tokenizer"
    elif training is not None:
        folder, setting = training.config.data.tokenizer, "data.tokenizer"
    else:
        return None
    tokenizer = Tokenizer.load(folder)
    require_tokenizer(settings.data, info, tokenizer, folder, setting=setting)
    for dataset in () if training is None else training.datasets:
        require_tokenizer(dataset.path, dataset.info, tokenizer, folder, setting=setting)
    return tokenizer


def _window(
    settings: InspectSection,
    info: "TokenFileInfo",
    stream: "TokenStream",
    training: Training | None,
    tokenizer: "Tokenizer",
) -> Passage:
    """Return one of the consecutive windows of the data, with the first id of the next window."""
    assert settings.window is not None
    model = ModelHparams() if training is None else training.config.model
    length = settings.context_length or model.context_length
    windows = max(1, -(-(len(stream) - 1) // length))
    if settings.window >= windows:
        raise ConfigError(
            f"inspect.window: must be below {windows}, as many windows of {length} tokens as {settings.data} has "
            f"(got {settings.window})"
        )
    return Passage.read(
        settings.data,
        stream,
        tokenizer,
        begin=settings.window * length,
        num_tokens=length + 1,
        end_of_text_id=info.end_of_text_id,
    )


def _check_step(settings: InspectSection, training: Training) -> None:
    """Raise `ConfigError` if the run has no such step, or does not train on this data."""
    assert settings.step is not None
    if settings.step > training.config.training.steps:
        raise ConfigError(
            f"inspect.step: must be at most training.steps of {training.path}, {training.config.training.steps} "
            f"(got {settings.step})"
        )
    if training.epochs(settings.data) is None:
        raise ConfigError(
            f"inspect.step: {training.path} does not train on {settings.data}, but on "
            f"{', '.join(str(path) for path in training.config.data.train)}; give one of these as --data"
        )


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0


def _line(name: str, value: str) -> str:
    return f"  {name:<22}{value}"


if __name__ == "__main__":
    sys.exit(main())
