"""Roles, groups, and the optimizers built from them."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from transformerlm.checkpoint.tensor_file import to_bytes
from transformerlm.hparams import OptimizerHparams
from transformerlm.models import TransformerLM
from transformerlm.training import load_checkpoint, save_checkpoint
from transformerlm.training.combined import CombinedOptimizer
from transformerlm.training.muon import Muon
from transformerlm.training.optim import AdamW
from transformerlm.training.param_groups import (
    build_optimizer,
    load_optimizer,
    parameter_groups,
    parameter_roles,
    set_learning_rate,
)
from transformerlm.utils.errors import CheckpointError

MakeModel = Callable[..., TransformerLM]
ADAMW, MUON = OptimizerHparams(), OptimizerHparams(name="muon", embedding_lr_scale=3.0)


def names_by_role(model: nn.Module) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {role: {names[id(p)] for p in params} for role, params in parameter_roles(model).items()}


def test_every_parameter_has_one_role(make_model: MakeModel) -> None:
    model = make_model(qk_norm=True, qkv_bias=True)
    roles = names_by_role(model)
    assert roles["embeddings"] == {"token_embeddings.weight"}
    assert roles["head"] == {"lm_head.weight"}
    last = {name.rsplit(".", 2)[-2] for name in roles["hidden"]}
    assert last == {"q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"}
    last = {name.rsplit(".", 2)[-2] for name in roles["vectors"]}
    assert last == {"ln1", "ln2", "q_norm", "k_norm", "ln_final", "q_proj", "k_proj", "v_proj"}
    biases = {name for name in roles["vectors"] if name.endswith("bias")}
    assert biases == {f"layers.{n}.attn.{projection}_proj.bias" for n in range(2) for projection in "qkv"}
    assert sum(map(len, roles.values())) == len(list(model.parameters()))


def test_a_wrapped_or_tied_model_has_the_same_roles(make_model: MakeModel) -> None:
    wrapped = names_by_role(nn.ModuleDict({"module": make_model()}))
    assert wrapped["head"] == {"module.lm_head.weight"}
    assert wrapped["embeddings"] == {"module.token_embeddings.weight"}
    tied = names_by_role(make_model(tie_embeddings=True))
    assert tied["embeddings"] == {"token_embeddings.weight"}
    assert not tied["head"]


def test_frozen_parameters_are_left_out(make_model: MakeModel) -> None:
    model = make_model()
    model.lm_head.weight.requires_grad_(False)
    assert [group["role"] for group in parameter_groups(model, 0.1)] == ["hidden", "embeddings", "vectors"]


def test_matrices_decay_and_gains_do_not(make_model: MakeModel) -> None:
    groups = parameter_groups(make_model(), 0.1, embedding_lr_scale=5.0)
    found = [(group["role"], group["weight_decay"], group["lr_scale"]) for group in groups]
    assert found == [("hidden", 0.1, 1.0), ("embeddings", 0.1, 5.0), ("head", 0.1, 1.0), ("vectors", 0.0, 1.0)]


@pytest.mark.parametrize("hparams", [ADAMW, MUON], ids=["adamw", "muon"])
def test_learning_rates_are_multiples_of_the_schedules(hparams: OptimizerHparams, make_model: MakeModel) -> None:
    optimizer = build_optimizer(make_model(), hparams)
    set_learning_rate(optimizer, 0.02)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"hidden": 0.02, "embeddings": 0.02 * hparams.embedding_lr_scale, "head": 0.02, "vectors": 0.02}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        set_learning_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()


def test_muon_is_muon_for_hidden_matrices_and_adamw_for_the_rest(make_model: MakeModel) -> None:
    model, plain = make_model(), make_model()
    hparams = MUON.model_copy(update={"weight_decay": 0.2, "muon_momentum": 0.9, "beta2": 0.99, "eps": 1e-5})
    optimizer = build_optimizer(model, hparams)
    assert isinstance(optimizer, CombinedOptimizer)
    assert [type(part) for part in optimizer.parts] == [Muon, AdamW]
    groups = {group["role"]: group for group in parameter_groups(plain, 0.2, embedding_lr_scale=3.0)}
    muon = Muon([groups.pop("hidden")], momentum=0.9)
    adamw = AdamW(groups.values(), betas=(0.9, 0.99), eps=1e-5)
    train(model, optimizer, range(5))
    for step in range(5):
        train(plain, adamw, range(step, step + 1))
        set_learning_rate(muon, 0.01 * (step + 1))
        muon.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("hparams", [ADAMW, MUON], ids=["adamw", "muon"])
def test_saving_and_loading_is_bit_for_bit(hparams: OptimizerHparams, make_model: MakeModel) -> None:
    model, other = make_model(), make_model(seed=1)
    optimizer, resumed = build_optimizer(model, hparams), build_optimizer(other, hparams)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    save_checkpoint(model, optimizer, 3, file)
    file.seek(0)
    assert load_checkpoint(file, other, resumed) == 3
    assert to_bytes(resumed.state_dict()) == to_bytes(optimizer.state_dict())
    for net, opt in ((model, optimizer), (other, resumed)):
        train(net, opt, range(3, 6))
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert to_bytes(resumed.state_dict()) == to_bytes(optimizer.state_dict())


@pytest.mark.parametrize(("saved", "present"), [(ADAMW, MUON), (MUON, ADAMW)], ids=["adamw", "muon"])
def test_the_state_of_the_other_optimizer_is_refused_and_nothing_changes(
    saved: OptimizerHparams, present: OptimizerHparams, make_model: MakeModel
) -> None:
    model, other = make_model(), make_model(seed=1)
    optimizer, untouched = build_optimizer(model, saved), build_optimizer(other, present)
    train(model, optimizer, range(2))
    train(other, untouched, range(2))
    before = to_bytes([other.state_dict(), untouched.state_dict()])
    file = io.BytesIO()
    save_checkpoint(model, optimizer, 2, file)
    file.seek(0)
    with pytest.raises(CheckpointError, match="does not fit the optimizer"):
        load_checkpoint(file, other, untouched)
    assert to_bytes([other.state_dict(), untouched.state_dict()]) == before
    # And its parts still work on its groups and its state.
    fresh = make_model(seed=1)
    train(fresh, build_optimizer(fresh, present), range(3))
    train(other, untouched, range(2, 3))
    assert all(map(torch.equal, other.parameters(), fresh.parameters()))


@pytest.mark.parametrize("hparams", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_run_goes_on_with_the_present_settings(hparams: OptimizerHparams, make_model: MakeModel) -> None:
    changes = {"weight_decay": 0.7, "embedding_lr_scale": 9.0, "beta2": 0.5, "muon_momentum": 0.5}
    model, other = make_model(), make_model()
    optimizer, resumed = build_optimizer(model, hparams), build_optimizer(other, hparams.model_copy(update=changes))
    train(model, optimizer, range(2))
    load_optimizer(resumed, optimizer.state_dict())
    other.load_state_dict(model.state_dict())
    for group in optimizer.param_groups:  # what the new settings should come to
        group["weight_decay"] = 0.0 if group["role"] == "vectors" else 0.7
        group["lr_scale"] = 9.0 if group["role"] == "embeddings" else 1.0
        group |= {"momentum": 0.5} if "momentum" in group else {"betas": (0.9, 0.5)}
    for net, opt in ((model, optimizer), (other, resumed)):
        train(net, opt, range(2, 4))
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_fresh_optimizer_loads_a_fresh_state_and_keeps_one_state_with_its_parts(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = build_optimizer(model, MUON)
    optimizer.load_state_dict(build_optimizer(make_model(), MUON).state_dict())
    assert not optimizer.state
    train(model, optimizer, range(1))
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))


def test_a_state_that_fits_only_the_first_part_leaves_it_as_it_was(make_model: MakeModel) -> None:
    model, fresh = make_model(), make_model()
    optimizer, expected = build_optimizer(model, MUON), build_optimizer(fresh, MUON)
    for net, opt in ((model, optimizer), (fresh, expected)):
        train(net, opt, range(2))
    broken = copy.deepcopy(optimizer.state_dict())
    for saved in broken["state"].values():
        saved.pop("exp_avg", None)
        saved.get("momentum", torch.empty(0)).zero_()
    with pytest.raises(ValueError, match="not AdamW's"):
        optimizer.load_state_dict(broken)
    for net, opt in ((model, optimizer), (fresh, expected)):
        train(net, opt, range(2, 3))
    assert all(map(torch.equal, model.parameters(), fresh.parameters()))


def test_a_state_with_other_groups_is_refused(make_model: MakeModel) -> None:
    tied = build_optimizer(make_model(tie_embeddings=True), MUON)
    with pytest.raises(ValueError, match="has 3 groups of parameters, the optimizer 4"):
        build_optimizer(make_model(), MUON).load_state_dict(tied.state_dict())


def test_the_combination_passes_the_gradient_scale_on(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = build_optimizer(model, MUON)
    train(model, optimizer, range(1))
    before = to_bytes([model.state_dict(), optimizer.state_dict()["state"]])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(gradient_scale=torch.tensor(0.0))
    assert to_bytes([model.state_dict(), optimizer.state_dict()["state"]]) == before
