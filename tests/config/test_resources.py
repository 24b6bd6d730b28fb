"""The TOML files that ship fit their schemas and one another."""

from pathlib import Path

import pytest

import config
from config.bench_infer import BenchInferConfig
from config.bench_make_data import BenchMakeDataConfig
from config.bench_tokenizer import BenchTokenizerConfig
from config.bench_train import BenchTrainConfig
from config.export import ExportConfig
from config.import_model import ImportConfig
from config.infer import InferConfig
from config.inspect_data import InspectDataConfig
from config.io import load_config
from config.make_data import MakeDataConfig
from config.quickstart import QuickstartConfig
from config.schemas import Config
from config.serve import ServeConfig
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig

RESOURCES = Path(config.__path__[0]) / "resources"
SCHEMAS: dict[str, type[Config]] = {
    "bench_infer": BenchInferConfig,
    "bench_make_data": BenchMakeDataConfig,
    "bench_tokenizer": BenchTokenizerConfig,
    "bench_train": BenchTrainConfig,
    "import_model": ImportConfig,
    "export": ExportConfig,
    "infer": InferConfig,
    "inspect_data": InspectDataConfig,
    "make_data": MakeDataConfig,
    "quickstart": QuickstartConfig,
    "serve": ServeConfig,
    "train": TrainConfig,
    "train_tokenizer": TrainTokenizerConfig,
}


@pytest.mark.parametrize("path", sorted(RESOURCES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_file_loads(path: Path) -> None:
    # A variant is named after its command: train_tinystories.toml is for transformerlm-train.
    name = max((name for name in SCHEMAS if path.stem.startswith(name)), key=len)
    load_config(SCHEMAS[name], path)


def test_the_four_stages_hand_their_files_on() -> None:
    tokenizer = load_config(TrainTokenizerConfig, RESOURCES / "train_tokenizer.toml")
    data = load_config(MakeDataConfig, RESOURCES / "make_data.toml")
    train = load_config(TrainConfig, RESOURCES / "train.toml")
    infer = load_config(InferConfig, RESOURCES / "infer.toml")
    assert tokenizer.tokenizer.output == data.output.tokenizer == train.data.tokenizer
    assert ((data.output.train,), data.output.valid) == (train.data.train, train.data.valid)
    assert infer.inference.checkpoint == train.training.runs_dir / train.logging.run_name


def test_every_setting_has_a_description() -> None:
    for schema in SCHEMAS.values():
        for table, field in schema.model_fields.items():
            for key, setting in field.annotation.model_fields.items():  # type: ignore[union-attr]
                assert setting.description, f"{schema.__name__}: {table}.{key}"
