"""The data of a training configuration: opened, checked, mixed and named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.train import TrainConfig
from transformerlm.utils.errors import DataError

if TYPE_CHECKING:
    import torch

    from transformerlm.token_files.index import TokenFileInfo
    from transformerlm.tokenizer import Tokenizer
    from transformerlm.training import BatchLoader, TokenDataset


@dataclass(frozen=True)
class RunData:
    """The training and validation data of a run, all made with one tokenizer."""

    train: tuple["TokenDataset", ...]
    valid: "TokenDataset"

    @property
    def end_of_text_id(self) -> int | None:
        """The id that ends a document, if the tokenizer has one."""
        return self.valid.info.end_of_text_id


def open_data(config: TrainConfig, *, verify: bool) -> RunData:
    """Open all token files; raise `DataError` unless all were made with `data.tokenizer`."""
    from transformerlm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(config.data.tokenizer)
    *train, valid = open_datasets((*config.data.train, config.data.valid), config, verify=verify)
    for dataset in (*train, valid):
        require_tokenizer(dataset.path, dataset.info, tokenizer, config.data.tokenizer, setting="data.tokenizer")
    data = RunData(tuple(train), valid)
    if config.data.mask_documents and data.end_of_text_id is None:
        raise DataError(
            f"{config.data.tokenizer}: has no end-of-text token, after which data.mask_documents could cut; "
            "set that to false, or train a tokenizer that has one"
        )
    return data


def open_datasets(paths: Sequence[Path], config: TrainConfig, *, verify: bool) -> list["TokenDataset"]:
    """Open token files for the windows of a run."""
    from transformerlm.training import TokenDataset

    return [TokenDataset.open(path, context_length=config.model.context_length, verify=verify) for path in paths]


def require_tokenizer(path: Path, info: "TokenFileInfo", tokenizer: "Tokenizer", folder: Path, *, setting: str) -> None:
    """Raise `DataError` unless the token file `path` was made by the tokenizer of `folder`, which `setting` names."""
    if info.tokenizer_sha256 != tokenizer.sha256():
        raise DataError(
            f"{path}: was made by another tokenizer than {folder}; "
            f"make it again with transformerlm-make-data, or name its tokenizer as {setting}"
        )
    if info.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"{path}: its sidecar says {info.vocab_size} entries, its tokenizer has {tokenizer.vocab_size}; "
            "make it again with transformerlm-make-data"
        )


def batch_loader(
    config: TrainConfig,
    train: Sequence["TokenDataset"],
    *,
    device: "torch.device",
    rank: int = 0,
    world_size: int = 1,
) -> "BatchLoader":
    """Return the batches of a run."""
    from transformerlm.training import BatchLoader

    return BatchLoader(
        [dataset.tokens for dataset in train],
        weights=config.data.train_weights,
        batch_size=config.training.batch_size,
        context_length=config.model.context_length,
        seed=config.training.seed,
        device=device,
        rank=rank,
        world_size=world_size,
    )


def data_identity(config: TrainConfig, train: Sequence["TokenDataset"], loader: "BatchLoader") -> dict[str, Any]:
    """Return the properties of the data that must not change when a run is resumed."""
    hashes = [dataset.info.data_sha256 for dataset in train]
    identity: dict[str, Any] = {"data": hashes[0]}
    if len(hashes) > 1:
        identity = {"data": hashes, "data.quotas": list(loader.mixture.quotas)}
    if config.data.mask_documents:
        identity["data.mask_documents"] = True
    return identity


def epochs_text(config: TrainConfig, loader: "BatchLoader") -> str:
    """Describe how many epochs a run makes over its data."""
    epochs = [f"{epochs:.2f}" for epochs in loader.epochs(config.training.steps)]
    if len(epochs) == 1:
        return f"{epochs[0]} epochs"
    return "epochs: " + ", ".join(f"{n} of {path}" for n, path in zip(epochs, config.data.train, strict=True))
