"""Tiny models over the tests' tokenizer."""

from collections.abc import Callable

import pytest
import torch

from transformerlm.hparams import ModelHparams
from transformerlm.models import TransformerLM
from transformerlm.models.build import build_model
from transformerlm.models.transformer import Block
from transformerlm.tokenizer import END_OF_TEXT, Tokenizer

CONTEXT = 12


@pytest.fixture
def make_model() -> Callable[..., TransformerLM]:
    """Makes a model of random weights whose probabilities are far from uniform."""

    def make(vocab_size: int = 320, context_length: int = CONTEXT, seed: int = 0) -> TransformerLM:
        model = build_model(
            ModelHparams(
                vocab_size=vocab_size, context_length=context_length, d_model=16, num_layers=2, num_heads=2, d_ff=32
            ),
            seed=seed,
        ).eval()
        with torch.no_grad():
            model.output_weight.mul_(3)
            for block in model.layers:
                assert isinstance(block, Block)
                block.attn.output_proj.weight.mul_(10)  # what came before matters
        return model

    return make


@pytest.fixture
def forgetful(make_model: Callable[..., TransformerLM]) -> TransformerLM:
    """A model that sees the last token only: nothing comes out of its attention."""
    model = make_model()
    for block in model.layers:
        assert isinstance(block, Block)
        torch.nn.init.zeros_(block.attn.output_proj.weight)
    return model


@pytest.fixture
def uniform(make_model: Callable[..., TransformerLM]) -> Callable[[int], TransformerLM]:
    """Makes a model that holds all of so many ids equally likely."""

    def make(vocab_size: int) -> TransformerLM:
        model = make_model(vocab_size)
        torch.nn.init.zeros_(model.output_weight)
        return model

    return make


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    """A tokenizer without merges."""
    return Tokenizer({number: bytes([number]) for number in range(256)}, [], [END_OF_TEXT])
