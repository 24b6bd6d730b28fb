"""What the two processes that `test_sharding` starts do: train in several ways, and write down what came of it.

    RANK=0 WORLD_SIZE=2 … python worker.py FOLDER

The first one trains alone as well, before it joins the other, for comparison. FOLDER/RANK.safetensors gets the results.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import tomli_w
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from transformerlm.checkpoint.folder import Checkpoint
from transformerlm.checkpoint.group_store import GroupCheckpointStore
from transformerlm.distributed.dtensor import local_piece, whole
from transformerlm.distributed.group import World, end_process, join_world
from transformerlm.distributed.sharding import Parallelism, Strategy
from transformerlm.hparams import ModelHparams, OptimizerHparams, ScheduleHparams, TrainingHparams
from transformerlm.models.build import build_model
from transformerlm.training import CheckpointStore, Trainer
from transformerlm.training.state import load_trainer, load_weights, trainer_state
from transformerlm.utils.errors import DataError, TransformerLMError

STEPS, SAVED = 6, 3
ROWS = 4
SCATTER = "c10d::_reduce_scatter_base_"  # with it each process gets the sum of its piece of the gradients
END_OF_TEXT_ID = 30
# Odd sizes: one process has more rows of the weight than the other.
MODEL = ModelHparams(
    vocab_size=41, context_length=12, d_model=6, num_layers=2, num_heads=3, d_ff=33, qk_norm=True, qkv_bias=True
)

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A way to train."""

    strategy: Strategy
    micro_batch_size: int | None = None
    optimizer: str = "adamw"
    masked: bool = False

    @property
    def way(self) -> str:
        return self.optimizer + "_masked" * self.masked

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.micro_batch_size or 'whole'}-{self.way}"


CASES = [
    Case("ddp"), Case("ddp", 1), Case("ddp", None, "muon"), Case("ddp", 1, masked=True),
    Case("fsdp"), Case("fsdp", 1), Case("fsdp", None, "muon"), Case("fsdp", 1, masked=True),
]  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results: Results = {}
    alone = World()
    is_first = os.environ["RANK"] == "0"
    if is_first:
        for case in (Case("single"), Case("single", None, "muon"), Case("single", masked=True)):
            results |= trained(case, alone, folder)
    with join_world(torch.device("cpu"), timeout=timedelta(seconds=60)) as world:
        results |= agreed(world)
        for case in CASES:
            results |= trained(case, world, folder)
            results |= continued(case, world, folder / f"single-whole-{case.way}", f"{case.name}.from_one")
            results |= begun(case, world, folder / "single-whole-adamw")
    if is_first:
        for case in CASES:
            single = Case("single", None, case.optimizer, case.masked)
            results |= continued(single, alone, folder / case.name, f"{case.name}.to_one")
    save_file(results, folder / f"{world.rank}.safetensors")
    end_process(0)


def agreed(world: World) -> Results:
    """Return what the methods of `World` give to processes that have different things to say."""
    errors = {}
    for failing in (0, 1):
        try:
            with world.together():
                if world.rank == failing:
                    raise DataError(f"{failing} has no data")
        except TransformerLMError as error:
            errors[failing] = f"{type(error).__name__}: {error}"
    words = " | ".join(errors.values()).encode("utf-8")
    return {
        "agreed.largest": torch.tensor(world.agree(10 * world.rank + 1)),
        "agreed.sum": torch.tensor(world.sum(world.rank + 0.5)),
        "agreed.mean": world.mean(torch.tensor(float(world.rank))),
        "agreed.from_first": torch.tensor(world.from_first(lambda: world.rank + 7)),
        "agreed.errors": torch.tensor(list(words), dtype=torch.uint8),
    }


def trained(case: Case, world: World, folder: Path) -> Results:
    """Train for six steps with a checkpoint in the middle; then again from that checkpoint."""
    parallelism = Parallelism(world, case.strategy)
    config = tomli_w.dumps({"model": MODEL.model_dump(exclude_none=True)})
    store = CheckpointStore(folder / case.name, keep_last=2, config_toml=config, tokenizer=None, hparams=MODEL)
    trainer = make_trainer(case, parallelism)
    found, sent = gradients(trainer, world)
    results = {f"{case.name}.gradient.{name}": value for name, value in found.items()}
    results[f"{case.name}.sendings"] = torch.tensor(len(sent))
    results[f"{case.name}.scatterings"] = torch.tensor(sent.count(SCATTER))
    for step in range(1, STEPS + 1):
        result = trainer.step(step, batch(step, world))
        results |= {f"{case.name}.number.{step}": torch.tensor([result.loss, result.grad_norm])}
        if step == SAVED:
            weights = trainer.model.state_dict()
            GroupCheckpointStore(store, parallelism).save(
                model=weights, optimizer=trainer_state(trainer), state={"step": step, "best_step": None}
            )
    pieces = sum(local_piece(parameter).numel() for parameter in trainer.model.parameters())
    results[f"{case.name}.pieces"] = torch.tensor(pieces)
    valid = trainer.evaluate([batch(step, World()) for step in (101, 102, 103)])  # of two processes one takes two
    results[f"{case.name}.number.valid"] = torch.tensor(valid)
    results |= weights_of(trainer, f"{case.name}.weight")
    return results | continued(case, world, folder / case.name, f"{case.name}.resumed")


def continued(case: Case, world: World, checkpoints: Path, prefix: str) -> Results:
    """Return the weights after the steps that follow the checkpoint there."""
    trainer = make_trainer(case, Parallelism(world, case.strategy), seed=1)
    load_trainer(trainer, Checkpoint.open(checkpoints))
    for step in range(SAVED + 1, STEPS + 1):
        trainer.step(step, batch(step, world))
    return weights_of(trainer, prefix)


def begun(case: Case, world: World, checkpoints: Path) -> Results:
    """Return the weights of a trainer that has taken over those of the checkpoint there."""
    trainer = make_trainer(case, Parallelism(world, case.strategy), seed=1)
    load_weights(trainer, Checkpoint.open(checkpoints))
    return weights_of(trainer, f"{case.name}.begun")


def make_trainer(case: Case, parallelism: Parallelism, *, seed: int = 0) -> Trainer:
    return Trainer(
        # In float64, so that what differs is what the processes do, and not how sums of float32 are rounded: AdamW's
        # first steps divide a gradient by its own size, and make of a rounding error whatever they like.
        build_model(MODEL, seed=seed, dtype=torch.float64),
        optimizer=OptimizerHparams.model_validate({"name": case.optimizer}),
        schedule=ScheduleHparams(max_learning_rate=1e-2, min_learning_rate=1e-3, warmup_iters=2),
        training=TrainingHparams(steps=STEPS, micro_batch_size=case.micro_batch_size, max_grad_norm=0.5),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parallelism=parallelism,
        mask_after=END_OF_TEXT_ID if case.masked else None,
    )


def batch(step: int, world: World) -> tuple[Tensor, Tensor]:
    """Return this process's rows of the batch, inputs and targets."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 41, (ROWS, MODEL.context_length + 1), generator=generator)
    ids[:, 4:8].clamp_(max=END_OF_TEXT_ID)  # some documents end in the middle
    ids = ids.chunk(world.size)[world.rank]
    return ids[:, :-1], ids[:, 1:]


def gradients(trainer: Trainer, world: World) -> tuple[Results, list[str]]:
    """Return the gradients that a first step would use, and the operations that send them; it changes nothing."""
    found: Results = {}

    def spy(**_: object) -> None:
        named = trainer.model.named_parameters()
        found.update({name: whole(p.grad).clone() for name, p in named if p.grad is not None})

    step, trainer.optimizer.step = trainer.optimizer.step, spy  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.step(1, batch(1, world))
    trainer.optimizer.step = step  # type: ignore[method-assign]
    return found, [event.name for event in profiler.events() if event.name in (SCATTER, "c10d::allreduce_")]


def weights_of(trainer: Trainer, prefix: str) -> Results:
    return {f"{prefix}.{name}": whole(value).clone() for name, value in trainer.model.state_dict().items()}


if __name__ == "__main__":
    main()
