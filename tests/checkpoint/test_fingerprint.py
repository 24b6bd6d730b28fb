"""Code is part of a model: what other code made is refused, or warned of, wherever weights are loaded."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import nn

from cli.infer import main as infer_main
from cli.train import main as train_main
from transformerlm.checkpoint.fingerprint import FINGERPRINT_FILE, code_version, probe_logits
from transformerlm.fast.decoding import with_int8_weights
from transformerlm.hparams import ModelHparams
from transformerlm.inference.predictor import Predictor
from transformerlm.models import SwiGLU, TransformerLM
from transformerlm.models.build import build_model
from transformerlm.models.layers import Linear, RMSNorm
from transformerlm.training import Checkpoint, CheckpointStore
from transformerlm.utils.errors import CheckpointError, ConfigError

HPARAMS = ModelHparams(vocab_size=50, context_length=6, d_model=16, num_layers=2, num_heads=2, d_ff=24)
CONFIG = tomli_w.dumps({"model": HPARAMS.model_dump(exclude_none=True)})


class GELUMLP(nn.Module):
    """A researcher's layer in place of SwiGLU: one matrix less."""

    def __init__(self, d_model: int, d_ff: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.gelu(self.w1(x)))


def gelu_gate(layer: SwiGLU, x: torch.Tensor) -> torch.Tensor:
    return layer.w2(nn.functional.gelu(layer.w1(x)) * layer.w3(x))


def save(model: TransformerLM, folder: Path) -> Checkpoint:
    store = CheckpointStore(folder, keep_last=1, config_toml=CONFIG, tokenizer=None, hparams=HPARAMS)
    return Checkpoint.open(store.save(model=model.state_dict(), optimizer={}, state={"step": 1}))


@pytest.fixture
def model() -> TransformerLM:
    return build_model(HPARAMS, seed=0)


def test_the_same_code_says_nothing_whatever_state_the_model_is_in(model: TransformerLM, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    checkpoint = save(model.train(), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    saved = json.loads((checkpoint.path / FINGERPRINT_FILE).read_text())
    assert {key: saved[key] for key in code_version()} == code_version()
    assert torch.tensor(saved["logits"]).shape == (6, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.require_same_code()


def test_the_logits_are_those_of_the_model(model: TransformerLM) -> None:
    ids = torch.tensor([[(2_654_435_761 * (position + 1) >> 8) % 50 for position in range(6)]])
    torch.testing.assert_close(probe_logits(HPARAMS, model.state_dict()), model(ids)[0])


def test_a_changed_block_is_named_with_the_difference(
    model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(model, tmp_path)
    monkeypatch.setattr(SwiGLU, "forward", gelu_gate)
    with pytest.raises(CheckpointError, match=r"made by other code \(its logits differ by [0-9.]+\); use the"):
        checkpoint.require_same_code()


def test_a_layer_with_other_weights_is_named(
    model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(model, tmp_path)
    monkeypatch.setattr("transformerlm.models.transformer.SwiGLU", GELUMLP)
    monkeypatch.setattr(
        "transformerlm.checkpoint.fingerprint.code_version", lambda: code_version() | {"models_sha256": "other"}
    )
    with pytest.raises(CheckpointError, match=r"made by other code: .*ffn\.w3"):
        checkpoint.require_same_code()


def test_a_small_difference_is_a_warning_that_names_the_tolerance(
    model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(model, tmp_path)
    forward = RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda layer, x: forward(layer, x) * 1.001)
    with pytest.warns(UserWarning, match=r"differ by 0\.00[0-9]+ .*tolerance 0\.00[0-9]+\)"):
        checkpoint.require_same_code()


def test_older_checkpoints_and_those_of_other_models_load_as_before(model: TransformerLM, tmp_path: Path) -> None:
    path = save(model, tmp_path).path
    (path / FINGERPRINT_FILE).write_text('{"logits": null}')
    Checkpoint(path).require_same_code()
    (path / FINGERPRINT_FILE).unlink()
    Checkpoint(path).require_same_code()


@pytest.mark.parametrize("logits", ["7", "[[1.0]]", '"x"', '[["x"]]', "[[1.0], [1.0, 2.0]]"])
def test_a_damaged_fingerprint_is_named(logits: str, model: TransformerLM, tmp_path: Path) -> None:
    path = save(model, tmp_path).path
    (path / FINGERPRINT_FILE).write_text(f'{{"logits": {logits}}}')
    with pytest.raises(CheckpointError, match=r"fingerprint\.json: is damaged"):
        Checkpoint(path).require_same_code()


def test_weights_that_overflow_can_be_saved(model: TransformerLM, tmp_path: Path) -> None:
    nn.init.constant_(model.ln_final.weight, torch.inf)
    checkpoint = save(model, tmp_path)
    assert json.loads((checkpoint.path / FINGERPRINT_FILE).read_text())["logits"] is None


def test_infer_resume_and_init_from_refuse_what_other_code_made(
    run_folder: Path,
    run_main: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Predictor.from_checkpoint(run_folder, device="cpu")
    monkeypatch.setattr(SwiGLU, "forward", gelu_gate)
    refused = run_main(infer_main, "--checkpoint", run_folder, "--prompt", "Once", "--inference.device", "cpu")
    assert (refused.code, refused.out) == (2, "")
    assert "this checkpoint was made by other code (its logits differ by" in refused.err
    options = ("--training.steps", 13, "--training.compile", "false")
    resumed = run_main(train_main, "--config", run_folder / "config.toml", *options)
    begun = run_main(
        train_main, "--config", run_folder / "config.toml", *options,
        "--training.init-from", run_folder, "--logging.run-name", "another",
    )  # fmt: skip
    for result in (resumed, begun):
        assert result.code == 2
        assert "this checkpoint was made by other code" in result.err


def test_int8_weights_of_a_changed_layer_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformerlm.models.transformer.SwiGLU", GELUMLP)
    with pytest.raises(ConfigError, match="GELUMLP lacks the matrices w1, w3, w2"):
        with_int8_weights(build_model(HPARAMS, seed=0))
