"""Checkpoints of tiny models with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.training import CheckpointStore

SAMPLES = Path(__file__).parents[1] / "data"

SIZES: dict[str, Any] = {
    "vocab_size": 320, "context_length": 48, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 48,
    "rope_theta": 500.0, "norm_eps": 1e-4,
}  # fmt: skip
SLOWED: dict[str, Any] = {
    "rope_scaling": "llama3", "rope_factor": 4.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
    "rope_original_context": 16,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True, "num_kv_heads": 1},
    "head_size": {"head_size": 12},
    "three_heads": {"num_heads": 3, "head_size": 12, "num_kv_heads": 1},
    "qkv_bias": {"qkv_bias": True, "num_kv_heads": 2},
    "qk_norm": {"qk_norm": True, "num_kv_heads": 2},
    "qk_norm_head_size": {"qk_norm": True, "head_size": 12, "tie_embeddings": True},
    "linear": {"rope_scaling": "linear", "rope_factor": 3.0},
    "llama3": SLOWED,
    "qkv_bias_llama3": {"qkv_bias": True, **SLOWED},
}


@pytest.fixture(params=MODELS)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of a model, beside sizes that all have: one kind after the other."""
    return MODELS[request.param]


@pytest.fixture
def random_model() -> Callable[..., TransformerLM]:
    """Builds a model whose gains and biases are random as well: as they begin, they would not be missed."""

    def build(**settings: Any) -> TransformerLM:
        model = build_model(ModelHparams(**SIZES | settings), seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2, generator=generator)
        return model.eval()

    return build


@pytest.fixture
def save_checkpoint(workspace: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a model in a run folder in `tmp_path`, with the workspace's tokenizer, that in a folder, or none."""

    def save(
        model: TransformerLM,
        *,
        name: str = "run",
        tokenizer: Path | None = workspace / "tokenizer",
        fits: bool = True,
        **settings: Any,
    ) -> Path:
        (tmp_path / name).mkdir()
        config = tomli_w.dumps({"model": SIZES | settings})
        store = CheckpointStore(
            tmp_path / name / "checkpoints",
            keep_last=1,
            config_toml=config,
            tokenizer=tokenizer,
            hparams=ModelHparams(**SIZES | settings) if fits else None,
        )
        store.save(model=model.state_dict(), optimizer={}, state={"step": 7})
        return tmp_path / name

    return save


@pytest.fixture
def sample_texts() -> list[str]:
    """The texts of `tests/data`, in excerpts of a few thousand characters."""
    texts = [path.read_bytes().decode("utf-8") for path in sorted(SAMPLES.glob("*.txt"))]
    assert texts
    return [text[start : start + 5000] for text in texts for start in range(0, len(text), 5000)]
