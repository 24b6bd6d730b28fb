"""The configuration of `transformerlm-bench-train`."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from config.schemas import Config
from transformerlm.hparams import DeviceName, ModelHparams, Section

SizeName = Literal["S", "M", "gpt2", "billion"]
ToolName = Literal[
    "transformerlm", "transformerlm_eager", "llama_bfloat16_compiled", "llama_float32_compiled", "llama_float32_eager"
]

OURS: ToolName = "transformerlm"
PEERS: tuple[ToolName, ...] = (
    "transformerlm_eager", "llama_bfloat16_compiled", "llama_float32_compiled", "llama_float32_eager",
)  # fmt: skip


class TrainSize(ModelHparams):
    """The shape of a model and of its training batches."""

    batch_size: int = Field(default=16, gt=0, description="Sequences per optimizer step.")
    micro_batch_size: int = Field(
        default_factory=lambda data: data["batch_size"], gt=0, description="Sequences per forward pass."
    )
    cuda_only: bool = Field(default=False, description="Too large for a CPU: skipped without CUDA.")


class BenchTrainSection(Section):
    """The measurement."""

    sizes: Annotated[tuple[SizeName, ...], Strict(False)] = Field(
        default=("S", "M", "gpt2", "billion"), min_length=1, description="Tables of this file, each a model to measure."
    )
    peers: Annotated[tuple[ToolName, ...], Strict(False)] = Field(
        default=PEERS, description=f"Peers to measure: {', '.join(PEERS)}; llama is that of transformers."
    )
    repeats: int = Field(default=3, gt=1, description="Processes for each row; the first finds no compile cache.")
    seconds: float = Field(default=10.0, gt=0, description="Of steps in each process, after the first three.")
    timeout: int = Field(default=600, gt=0, description="Seconds after which a process is ended.")
    device: DeviceName = Field(default="auto", description="auto | cpu | cuda | mps.")
    threads: int = Field(default=0, ge=0, description="CPU threads (0: torch's own choice).")


class BenchTrainConfig(Config):
    """Measure the training step beside a GPT-2-style baseline."""

    benchmark: BenchTrainSection = Field(default_factory=BenchTrainSection)
    S: TrainSize
    M: TrainSize
    gpt2: TrainSize
    billion: TrainSize
