"""Scaled rotary frequencies against transformers' and against their definition."""

import math

import pytest
import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import RotaryPositionalEmbedding, TransformerLM
from transformerlm.models.rope_scaling import scaled_frequencies
from transformerlm.utils.errors import ConfigError

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}


def llama3(**numbers: float) -> ModelHparams:
    return ModelHparams.checked(rope_scaling="llama3", **{f"rope_{name}": value for name, value in numbers.items()})


def plain(theta: float, d_k: int) -> torch.Tensor:
    return theta ** -(torch.arange(0, d_k, 2, dtype=torch.float64) / d_k)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("changes", [{}, {"factor": 32.0}, {"original_context": 64, "high_freq_factor": 1.5}])
def test_llama3_frequencies_are_those_of_transformers(theta: float, changes: dict) -> None:
    llama = pytest.importorskip("transformers", reason="needs transformers: uv sync --group peers").LlamaConfig
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    numbers = {**LLAMA3, **changes}
    theirs = {("original_max_position_embeddings" if k == "original_context" else k): v for k, v in numbers.items()}
    config = llama(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131_072,
        rope_parameters={"rope_type": "llama3", "rope_theta": theta, **theirs},
    )  # fmt: skip
    expected, scale = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert scale == 1.0
    found = scaled_frequencies(plain(theta, 64).float(), llama3(**numbers))
    torch.testing.assert_close(found, expected, rtol=5e-7, atol=0)


def test_llama3_slows_what_turns_seldom_and_leaves_what_turns_often() -> None:
    frequencies = plain(500_000.0, 128)
    scaled = scaled_frequencies(frequencies, llama3(**LLAMA3))
    turns = 8192 * frequencies / (2 * math.pi)
    slow, often = turns < 1, turns > 4
    between = ~slow & ~often
    assert slow.sum() > 5 and often.sum() > 5 and between.sum() > 1
    torch.testing.assert_close(scaled[slow], frequencies[slow] / 8)
    assert torch.equal(scaled[often], frequencies[often])
    share = (turns[between] - 1) / 3
    torch.testing.assert_close(scaled[between], frequencies[between] * (share + (1 - share) / 8))
    assert (scaled.diff() < 0).all()


def test_linear_scaling_interpolates_positions() -> None:
    settings = ModelHparams.checked(rope_scaling="linear", rope_factor=4.0)
    rope = RotaryPositionalEmbedding(10_000.0, 8, 32)
    slower = scaled_frequencies(rope.frequencies, settings)
    scaled = RotaryPositionalEmbedding(10_000.0, 8, 32, frequencies=slower)
    torch.testing.assert_close(scaled.cos[::4], rope.cos[:8])
    torch.testing.assert_close(scaled.sin[::4], rope.sin[:8])


def test_no_scaling_changes_nothing() -> None:
    exponents = torch.arange(0, 8, 2, dtype=torch.float32) / 8
    angles = torch.outer(torch.arange(32, dtype=torch.float32), 10_000.0**-exponents)
    rope = RotaryPositionalEmbedding(10_000.0, 8, 32)
    assert torch.equal(rope.cos, angles.cos())
    assert torch.equal(rope.sin, angles.sin())


def test_scaled_tables_survive_moves_and_the_meta_device() -> None:
    options = {"frequencies": scaled_frequencies(plain(500_000.0, 64).float(), llama3(**LLAMA3))}
    expected = RotaryPositionalEmbedding(500_000.0, 64, 128, **options).cos
    assert torch.equal(RotaryPositionalEmbedding(500_000.0, 64, 128, **options).to(torch.bfloat16).cos, expected)
    with torch.device("meta"):
        rope = RotaryPositionalEmbedding(500_000.0, 64, 128, **options)
    assert torch.equal(rope.to_empty(device="cpu").cos, expected)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rope_scaling": "yarn", "rope_factor": 2.0}, "rope_scaling should be 'linear' or 'llama3' .got 'yarn'"),
        ({"rope_scaling": "linear"}, "rope_factor must be given with rope_scaling linear"),
        ({"rope_factor": 2.0}, "rope_factor must be unset with rope_scaling unset"),
        ({"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor should be greater than or equal to 1 .got 0.5"),
        ({"rope_scaling": "linear", "rope_factor": math.nan}, "rope_factor should be a finite number .got nan"),
        ({"rope_scaling": "linear", "rope_factor": 2.0, "rope_original_context": 9}, "rope_original_context must be"),
        (
            {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 4.0, "rope_high_freq_factor": 4.0,
             "rope_original_context": 9},
            "rope_low_freq_factor must be below rope_high_freq_factor = 4.0 .got 4.0",
        ),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(numbers: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerLM(50, 16, 24, 1, 4, 32, **numbers)
