"""Typed settings of the library's parts: one frozen class per table of a TOML file.

Defaults, meanings and limits live here and nowhere else. A part receives its own section
(`Trainer` gets `TrainingHparams`), never a whole configuration. Pydantic checks single values;
`problems` lists invalid combinations, so that a loader can report all problems at once.
Importing this module does not import torch.
"""

from transformerlm.hparams.inference import EvaluationHparams, SamplingHparams
from transformerlm.hparams.model import ROPE_SCALING_NUMBERS, ModelHparams, RopeScaling, swiglu_width
from transformerlm.hparams.records import (
    LoggingBackend,
    LoggingHparams,
    RecordFormat,
    TrainLoggingHparams,
    WandbHparams,
)
from transformerlm.hparams.section import (
    DeviceName,
    DtypeName,
    Integers,
    NamesSetting,
    PathSetting,
    PathsSetting,
    PositiveNumbers,
    Problem,
    Section,
    Seed,
    Strings,
)
from transformerlm.hparams.training import (
    CheckpointHparams,
    DataHparams,
    OptimizerHparams,
    ParallelHparams,
    ScheduleHparams,
    TrainingHparams,
    ValidationHparams,
)

END_OF_TEXT = "<|endoftext|>"
"""The special token that ends a document, spelled as in GPT-2."""

BUILTIN_STORIES = "builtin:stories"
"""The source name of the built-in corpus, which the data builder generates."""

__all__ = [
    "ROPE_SCALING_NUMBERS",
    "ModelHparams",
    "RopeScaling",
    "swiglu_width",
    "CheckpointHparams",
    "DataHparams",
    "OptimizerHparams",
    "ParallelHparams",
    "ScheduleHparams",
    "TrainingHparams",
    "ValidationHparams",
    "LoggingBackend",
    "LoggingHparams",
    "RecordFormat",
    "TrainLoggingHparams",
    "WandbHparams",
    "EvaluationHparams",
    "SamplingHparams",
    "DeviceName",
    "DtypeName",
    "Integers",
    "NamesSetting",
    "PathSetting",
    "PathsSetting",
    "PositiveNumbers",
    "Problem",
    "Section",
    "Seed",
    "Strings",
    "BUILTIN_STORIES",
    "END_OF_TEXT",
]
