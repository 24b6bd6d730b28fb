"""The functions that read the TOML file of a command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import config
from config.infer import InferConfig
from config.make_data import MakeDataConfig
from config.schemas import Config
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.utils.errors import ConfigError

RESOURCES = Path(config.__path__[0]) / "resources"


@pytest.mark.parametrize(
    ("load", "name", "schema"),
    [
        (config.load_train_config, "train", TrainConfig),
        (config.load_infer_config, "infer", InferConfig),
        (config.load_make_data_config, "make_data", MakeDataConfig),
        (config.load_train_tokenizer_config, "train_tokenizer", TrainTokenizerConfig),
    ],
)
def test_a_file_becomes_a_typed_configuration(
    load: Callable[[Path | str], Config], name: str, schema: type[Config]
) -> None:
    path = RESOURCES / f"{name}.toml"
    assert type(load(path)) is schema
    assert load(str(path)) == load(path)


def test_errors_are_those_of_the_command_line(write_toml: Callable[..., Path], train_tables: dict[str, Any]) -> None:
    assert config.load_train_config(write_toml(train_tables)).training.steps == 12
    train_tables["training"] |= {"steps": "12", "lr": 0.1}
    path = write_toml(train_tables)
    with pytest.raises(ConfigError) as caught:
        config.load_train_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}: training.steps: should be a valid integer (got '12')",
        f"{path}: training.lr: unknown key (got 0.1); did you mean schedule.max_learning_rate?",
    ]
    with pytest.raises(ConfigError, match="there is no such file"):
        config.load_infer_config("none.toml")
