"""Training from scratch: loss, AdamW and Muon, schedules, batches, checkpoints, one step, and the loop over them.

Everything here sees token ids only. `Trainer` takes one step, `TrainingRun` loops over steps and yields records;
neither prints nor logs.
"""

from transformerlm.checkpoint.folder import Checkpoint, CheckpointStore
from transformerlm.token_files.dataset import TokenDataset
from transformerlm.training.checkpoint import load_checkpoint, save_checkpoint
from transformerlm.training.data import BatchLoader, get_batch
from transformerlm.training.loop import TrainingRun
from transformerlm.training.loss import cross_entropy
from transformerlm.training.muon import Muon
from transformerlm.training.optim import AdamW, gradient_clipping
from transformerlm.training.param_groups import build_optimizer
from transformerlm.training.schedule import lr_cosine_schedule, lr_wsd_schedule
from transformerlm.training.trainer import Trainer

__all__ = [
    "AdamW",
    "BatchLoader",
    "Checkpoint",
    "CheckpointStore",
    "Muon",
    "TokenDataset",
    "Trainer",
    "TrainingRun",
    "build_optimizer",
    "cross_entropy",
    "get_batch",
    "gradient_clipping",
    "load_checkpoint",
    "lr_cosine_schedule",
    "lr_wsd_schedule",
    "save_checkpoint",
]
