"""Configurations: one frozen schema per command, read from TOML and the command line, checked as a whole.

`schemas` holds the tables that only the application knows, `train`, `infer` … the configuration of one
command each, `io` reads and writes them, `resources/` has the TOML files that ship.

The functions here read a TOML file into the checked, typed configuration of a command. They raise `ConfigError`
with one line per problem, the lines that the command itself prints.
"""

from pathlib import Path

from config.infer import InferConfig
from config.io import load_config
from config.make_data import MakeDataConfig
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig


def load_train_config(path: Path | str) -> TrainConfig:
    """Return the configuration of `transformerlm-train` in the file at `path`."""
    return load_config(TrainConfig, Path(path))


def load_infer_config(path: Path | str) -> InferConfig:
    """Return the configuration of `transformerlm-infer` in the file at `path`."""
    return load_config(InferConfig, Path(path))


def load_make_data_config(path: Path | str) -> MakeDataConfig:
    """Return the configuration of `transformerlm-make-data` in the file at `path`."""
    return load_config(MakeDataConfig, Path(path))


def load_train_tokenizer_config(path: Path | str) -> TrainTokenizerConfig:
    """Return the configuration of `transformerlm-train-tokenizer` in the file at `path`."""
    return load_config(TrainTokenizerConfig, Path(path))
