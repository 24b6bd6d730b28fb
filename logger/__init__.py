"""Where a run's records go: the console as JSON lines, `metrics.jsonl`, Weights & Biases, or nowhere.

A record is a flat mapping whose keys may contain dots, for example
`{"event": "train_step", "step": 10, "metrics.loss": 3.2}`. Every backend is a final class that
satisfies the `Logger` protocol; `make_logger` builds the ones that a config names.
"""

from logger.base import Logger
from logger.console_logger import ConsoleLogger
from logger.factory import make_logger
from logger.jsonl_logger import JsonlLogger
from logger.multi import MultiLogger
from logger.noop import NoopLogger
from logger.records import json_line
from logger.wandb_logger import WandbLogger

__all__ = [
    "Logger",
    "make_logger",
    "ConsoleLogger",
    "JsonlLogger",
    "WandbLogger",
    "NoopLogger",
    "MultiLogger",
    "json_line",
]
