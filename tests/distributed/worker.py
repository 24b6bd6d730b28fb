"""What each of the processes that `test_group` starts does: trains in several ways, and writes down what came of it.

    python worker.py FOLDER      with torchrun's variables in the environment

FOLDER/single holds a checkpoint of one process; FOLDER/RANK.safetensors gets the results of this one.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from recipe import BATCH_ROWS, STEPS, Case, batch_of, gradients_of, make_store, make_trainer
from safetensors.torch import save_file
from torch import Tensor

from transformerlm.distributed.group import World, join_world
from transformerlm.distributed.sharding import Parallelism
from transformerlm.distributed.shards import whole
from transformerlm.training import Trainer
from transformerlm.training.checkpoint import Checkpoint
from transformerlm.training.group_store import GroupCheckpointStore

CASES = [Case(strategy, rows) for strategy in ("ddp", "fsdp") for rows in (None, 1)]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join_world(torch.device("cpu"), timeout=timedelta(seconds=30)) as world:
        results: dict[str, Tensor] = {}
        for case in CASES:
            results |= {f"{case.name}.{key}": value for key, value in train(case, world, folder).items()}
    save_file(results, folder / f"{world.rank}.safetensors")


def train(case: Case, world: World, folder: Path) -> dict[str, Tensor]:
    """Return gradients, losses and weights of six steps; and weights after a stop, or a start by one process."""
    parallelism = Parallelism(world, case.strategy)
    store = GroupCheckpointStore(make_store(folder / case.name), parallelism)
    trainer = make_trainer(case, parallelism)
    results = {f"gradient.{name}": value for name, value in gradients_of(trainer, rows_of(1, world)).items()}
    losses = []
    for step in range(1, STEPS + 1):
        result = trainer.step(step, rows_of(step, world))
        losses += [result.loss, result.grad_norm]
        if step == STEPS // 2:
            store.save(model=trainer.model.state_dict(), optimizer=trainer.state(), state={"step": step})
    results["losses"] = torch.tensor(losses)
    results |= weights(trainer, "weight")

    newest = store.newest()
    assert newest is not None
    for name, checkpoint in (("resumed", newest), ("from_one", Checkpoint.open(folder / "single"))):
        other = make_trainer(case, parallelism, seed=1)
        other.load(checkpoint)
        for step in range(STEPS // 2 + 1, STEPS + 1):
            other.step(step, rows_of(step, world))
        results |= weights(other, name)
    return results


def rows_of(step: int, world: World) -> tuple[Tensor, Tensor]:
    rows = BATCH_ROWS // world.size
    inputs, targets = batch_of(step)
    return inputs.split(rows)[world.rank], targets.split(rows)[world.rank]


def weights(trainer: Trainer, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": whole(value).clone() for name, value in trainer.model.state_dict().items()}


if __name__ == "__main__":
    main()
