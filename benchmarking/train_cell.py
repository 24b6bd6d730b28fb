"""One measurement in a process of its own: one tool trains one model, and a line of JSON tells how fast.

    python -m benchmarking.train_cell '{"tool": "llama_float32_eager", …}'

A step is all of it: random ids, forward, backward, clipping, update. The first one is timed apart, since it compiles;
two more are not counted. The tool `peak` multiplies two large matrices instead, in bfloat16 and in float32.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarking.runner import print_measurement, seconds
from config.bench_train import TrainSize
from transformerlm.fast.allocator import keep_freed_memory

PEAK = "peak"
_UNCOUNTED = 2
_CUDA_STEPS = 10  # between two looks at the loss: as in training, the host does not wait for each step
_PEAK_SIZE = {"cuda": 8192}  # rows and columns of the matrices; elsewhere:
_PEAK_SIZE_CPU = 3072


@dataclass(frozen=True)
class Cell:
    """The task of one process."""

    tool: str
    size: dict[str, Any]
    device: str
    threads: int
    seconds: float


Step = Callable[[Any, Any], Callable[[], float]]
"""Takes a training step on (inputs, targets); what it returns waits for the device and gives the loss."""


def main(argument: str) -> None:
    """Measure what `argument`, a `Cell` as JSON, describes; print the figures as JSON."""
    cell = Cell(**json.loads(argument))
    if cell.tool.startswith("transformerlm"):
        keep_freed_memory()  # as transformerlm-train does; the peer is run as its users run it
    from transformerlm.utils.devices import select_device, set_threads

    set_threads(cell.threads)
    device = select_device(cell.device)
    result = measure_peak(device) if cell.tool == PEAK else measure_steps(cell, device)
    print_measurement(result)


def measure_peak(device: Any) -> dict[str, float]:
    """Return FLOP/s of a product of two large square matrices: the best of some."""
    import torch

    size = _PEAK_SIZE.get(device.type, _PEAK_SIZE_CPU)
    result = {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times = [seconds(lambda a=left, b=right: (a @ b)[0, 0].item()) for _ in range(6)]
        result[f"peak_flops.{str(dtype).removeprefix('torch.')}"] = 2 * size**3 / min(times)
    return result


def measure_steps(cell: Cell, device: Any) -> dict[str, Any]:
    """Train; return the seconds of the first step, tokens per second, peak memory and FLOP per token."""
    from transformerlm.utils.devices import peak_memory_bytes

    size = TrainSize(**cell.size)
    flops, step, dtype = _our_step(cell, size, device) if "llama" not in cell.tool else _llama_step(cell, size, device)
    batches = _batches(size, device)
    steps_a_reading = _CUDA_STEPS if device.type == "cuda" else 1

    def reading(steps: int = steps_a_reading) -> None:
        losses = [step(*next(batches)) for _ in range(steps)]
        losses[-1]()  # here the host waits

    first = seconds(lambda: reading(1))
    reading(_UNCOUNTED)
    tokens = steps_a_reading * size.batch_size * size.context_length
    speeds: list[float] = []
    start = time.perf_counter()
    while len(speeds) < 3 or time.perf_counter() - start < cell.seconds:
        speeds.append(tokens / seconds(reading))
    return {
        "first_step_seconds": first,
        "tokens_per_second": statistics.median(speeds),
        "readings": len(speeds),
        "peak_memory_bytes": peak_memory_bytes(device),
        "flops_per_token": flops,
        "dtype": dtype,
    }


def _batches(size: TrainSize, device: Any) -> Iterator[tuple[Any, Any]]:
    import torch

    assert size.vocab_size is not None
    draw = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(0, size.vocab_size, (size.batch_size, size.context_length + 1), generator=draw)
        if device.type == "cuda":
            ids = ids.pin_memory().to(device, non_blocking=True)
        yield ids[:, :-1], ids[:, 1:]


def _our_step(cell: Cell, size: TrainSize, device: Any) -> tuple[float, Step, str]:
    from transformerlm.hparams import OptimizerHparams, ScheduleHparams, TrainingHparams
    from transformerlm.models import flops_per_token
    from transformerlm.training import Trainer
    from transformerlm.utils.devices import select_training_dtype
    from transformerlm.utils.dtypes import dtype_name

    model = _model(size, device)
    dtype = select_training_dtype("auto", device)
    trainer = Trainer(
        model,
        optimizer=OptimizerHparams(),
        schedule=ScheduleHparams(),
        training=TrainingHparams(
            steps=10_000,
            batch_size=size.batch_size,
            micro_batch_size=size.micro_batch_size,
            compile=cell.tool == "transformerlm",
        ),
        device=device,
        dtype=dtype,
    )
    numbers = itertools.count(1)

    def step(inputs: Any, targets: Any) -> Callable[[], float]:
        result = trainer.step(next(numbers), (inputs, targets))
        return lambda: result.loss

    return flops_per_token(model), step, dtype_name(dtype)


def _model(size: TrainSize, device: Any) -> Any:
    from transformerlm.hparams import ModelHparams
    from transformerlm.models.build import build_model

    shape = {key: value for key, value in size.model_dump().items() if key in ModelHparams.model_fields}
    return build_model(ModelHparams(**shape), device=device, seed=0)


def _llama_step(cell: Cell, size: TrainSize, device: Any) -> tuple[float, Step, str]:
    """The training step of a GPT-2-style script: autocast, the whole model compiled, torch's fused AdamW."""
    import torch

    from benchmarking.infer_ways import new_llama
    from transformerlm.models import flops_per_token

    _, dtype, mode = cell.tool.split("_")
    flops = flops_per_token(_model(size, torch.device("meta")))
    torch.manual_seed(0)
    model = new_llama(size).to(device)
    model.config.use_cache = False
    forward = torch.compile(model) if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(inputs: Any, targets: Any) -> Callable[[], float]:
        total = torch.zeros((), device=device)
        for x, y in zip(inputs.split(size.micro_batch_size), targets.split(size.micro_batch_size), strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                logits = forward(input_ids=x).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
            loss = loss * len(x) / len(inputs)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item

    return flops, step, dtype


if __name__ == "__main__":
    main(sys.argv[1])
