"""The simple pair for any model and optimizer, and folders that are whole or refused."""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from transformerlm.checkpoint.folder import checkpoint_folders, read_eos_token_ids
from transformerlm.checkpoint.integrity import DamagedCheckpointError, FolderWriter
from transformerlm.models import TransformerLM
from transformerlm.tokenizer import Tokenizer
from transformerlm.training import AdamW, Checkpoint, CheckpointStore, load_checkpoint, save_checkpoint
from transformerlm.utils.errors import CheckpointError

Factory = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Factory] = {
    "own AdamW": lambda params: AdamW(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "plain SGD": lambda params: torch.optim.SGD(params, lr=0.01),
}


class Net(nn.Module):
    """Everything a state dict may hold: buffers, an integer, tied weights, an odd dtype."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("rounded", torch.ones(2, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)).relu())


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    inputs = torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(seed))
    for x in inputs:
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()


def net(factory: Factory, seed: int) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Net()
    return model, factory([{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}])


@pytest.mark.parametrize("kind", ["path", "str", "file object"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_model_goes_on_as_the_saved_one(name: str, kind: str, tmp_path: Path) -> None:
    model, optimizer = net(OPTIMIZERS[name], seed=0)
    steps(model, optimizer, 3, seed=1)
    target: Any = {"path": tmp_path / "c", "str": str(tmp_path / "c"), "file object": BytesIO()}[kind]
    save_checkpoint(model, optimizer, 3, target)
    if isinstance(target, BytesIO):
        target.seek(0)
    again, again_optimizer = net(OPTIMIZERS[name], seed=5)
    assert load_checkpoint(target, again, again_optimizer) == 3
    assert again.second.weight is again.first.weight
    for each, its_optimizer in ((model, optimizer), (again, again_optimizer)):
        steps(each, its_optimizer, 2, seed=2)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_any_module_can_be_saved(tmp_path: Path) -> None:
    model = nn.LSTM(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(model, optimizer, 0, tmp_path / "c")
    other = nn.LSTM(3, 4)
    load_checkpoint(tmp_path / "c", other, optimizer)
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_the_file_is_safetensors_and_holds_tied_weights_once(tmp_path: Path) -> None:
    model, optimizer = net(OPTIMIZERS["SGD"], seed=0)
    save_checkpoint(model, optimizer, 1, tmp_path / "c")
    names = load_file(tmp_path / "c").keys()
    assert "model.first.weight" in names
    assert "model.second.weight" not in names


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    model, optimizer = net(OPTIMIZERS["SGD"], seed=0)
    save_checkpoint(model, optimizer, 1, tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    optimizer.param_groups[0]["odd"] = {1, 2}
    with pytest.raises(CheckpointError, match=r"optimizer\.param_groups\.0\.odd: a set cannot be saved"):
        save_checkpoint(model, optimizer, 2, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_of_another_shape_lists_what_does_not_fit(tmp_path: Path) -> None:
    model, optimizer = net(OPTIMIZERS["SGD"], seed=0)
    save_checkpoint(model, optimizer, 1, tmp_path / "c")
    with pytest.raises(
        CheckpointError, match=r"does not fit the model[\s\S]*first\.weight[\s\S]*torch\.Size\(\[9, 9\]\)"
    ):
        load_checkpoint(tmp_path / "c", Net(9), optimizer)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(tmp_path / "c", nn.Linear(3, 3), optimizer)
    with pytest.raises(CheckpointError, match="does not fit the optimizer"):
        load_checkpoint(tmp_path / "c", model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, run_folder: Path) -> None:
    model, optimizer = net(OPTIMIZERS["SGD"], seed=0)
    path = tmp_path / "c"
    with pytest.raises(CheckpointError, match="c: there is no such checkpoint file"):
        load_checkpoint(path, model, optimizer)
    save_checkpoint(model, optimizer, 1, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="c: is not a file that this package wrote, or it is damaged"):
        load_checkpoint(path, model, optimizer)
    with pytest.raises(CheckpointError, match="is not a file that this package wrote"):
        load_checkpoint(BytesIO(b""), model, optimizer)
    with pytest.raises(CheckpointError, match="is not a file that save_checkpoint wrote"):
        load_checkpoint(Checkpoint.open(run_folder).path / "model.safetensors", model, optimizer)


def test_a_run_folder_stands_for_its_newest_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    newest = run_folder / "checkpoints/step_00000012"
    for path in (run_folder, run_folder / "checkpoints", newest):
        assert Checkpoint.open(path).path == newest
    renamed = shutil.copytree(newest, tmp_path / "my model")
    assert Checkpoint.open(renamed).step == 12
    with pytest.raises(CheckpointError, match="holds no checkpoint; make one with transformerlm-train"):
        Checkpoint.open(tmp_path)
    for path in (tmp_path / "none", tmp_path / "step_00000001"):
        with pytest.raises(CheckpointError, match="there is no such folder; transformerlm-train makes checkpoints"):
            Checkpoint.open(path)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=f"is a folder of transformers'.* transformerlm-import --hf {tmp_path}"):
        Checkpoint.open(tmp_path)


def store(folder: Path, keep_last: int = 2) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", keep_last=keep_last, config_toml="[model]\n", tokenizer=None)


def save(store: CheckpointStore, step: int, best: int | None = None) -> Path:
    return store.save(model={"w": torch.full((3,), step)}, optimizer={}, state={"step": step, "best_step": best})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(store: CheckpointStore) -> list[int]:
    return [int(path.name[5:]) for path in checkpoint_folders(store.folder)]


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    two = store(tmp_path)
    assert two.newest() is None
    for step, best, kept in (
        (10, None, [10]),
        (20, 20, [10, 20]),
        (30, 20, [20, 30]),
        (40, 20, [20, 30, 40]),
        (50, 50, [40, 50]),
    ):
        save(two, step, best)
        assert names(two) == kept
    newest = two.newest()
    assert newest is not None
    assert newest.step == 50


def test_folders_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    several = store(tmp_path, keep_last=3)
    for step in (99_999_999, 100_000_000, 5):
        save(several, step)
    assert names(several) == [5, 99_999_999, 100_000_000]


def test_the_same_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    two = store(tmp_path)
    save(two, 3)
    two.save(model={"w": torch.zeros(1)}, optimizer={}, state={"step": 3})
    newest = two.newest()
    assert newest is not None
    assert newest.model_state()["w"].tolist() == [0.0]


def test_what_a_killed_process_left_is_cleaned_and_never_read(tmp_path: Path) -> None:
    two = store(tmp_path)
    good = save(two, 3)
    shutil.copytree(good, two.folder / ".step_00000009.tmp")
    newest = two.newest()
    assert newest is not None
    assert newest.step == 3
    two.clean()
    assert [path.name for path in two.folder.iterdir()] == [good.name]


def test_a_kill_while_the_same_step_is_replaced_loses_neither(tmp_path: Path) -> None:
    two = store(tmp_path)
    good = save(two, 3)
    before = files_of(good)
    good.rename(two.folder / ".step_00000003.old")  # killed between the two renames
    two.clean()
    assert files_of(good) == before
    shutil.copytree(good, two.folder / ".step_00000003.old")  # killed after them
    two.clean()
    assert [path.name for path in two.folder.iterdir()] == [good.name]


def test_a_save_that_fails_leaves_the_others(tmp_path: Path) -> None:
    two = store(tmp_path)
    good = save(two, 3)
    with pytest.raises(CheckpointError, match="cannot be saved"):
        two.save(model={"w": torch.ones(1)}, optimizer={"odd": object()}, state={"step": 4})
    assert [path.name for path in two.folder.iterdir()] == [good.name]


def test_damaged_checkpoints_are_passed_over_listed_and_set_aside(tmp_path: Path) -> None:
    several = store(tmp_path, keep_last=9)
    folders = [save(several, step) for step in (1, 2, 3, 4)]
    for folder, name in ((folders[2], "state.json"), (folders[3], "model.safetensors")):
        (folder / name).write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"step_00000004/model\.safetensors: is damaged"):
        several.newest()
    damaged: list[DamagedCheckpointError] = []
    newest = several.newest(damaged)
    assert newest is not None
    assert newest.step == 2
    assert [(error.folder, error.problem.split(":")[0]) for error in damaged] == [
        (folders[3], str(folders[3] / "model.safetensors")),
        (folders[2], str(folders[2] / "state.json")),
    ]
    content = files_of(folders[3])
    aside = several.set_aside(folders[3])
    assert aside.name == "step_00000004.damaged"
    assert files_of(aside) == content
    shutil.copytree(aside, folders[3])
    assert several.set_aside(folders[3]).name == "step_00000004.damaged2"
    assert names(several) == [1, 2, 3]


def test_with_no_checkpoint_left_the_store_refuses_rather_than_beginning_afresh(tmp_path: Path) -> None:
    two = store(tmp_path)
    for step in (1, 2):
        (save(two, step) / "manifest.json").unlink()
    for name in ("step_00000001", "step_00000002"):
        with pytest.raises(
            CheckpointError, match=rf"no checkpoint is left to go on from .*{name}/manifest\.json: is missing"
        ):
            two.newest([])
    for step in (1, 2):
        two.set_aside(two.folder / f"step_{step:08d}")
    with pytest.raises(CheckpointError, match=r"no checkpoint is left .*step_00000002\.damaged: was set aside"):
        two.newest([])


@pytest.mark.parametrize("keep_last", [1, 2])
def test_going_back_does_not_remove_the_only_good_checkpoint(keep_last: int, tmp_path: Path) -> None:
    several = store(tmp_path, keep_last=9)
    for step in (1, 5, 6, 7):
        save(several, step)
    shutil.rmtree(several.folder / "step_00000005")
    back = store(tmp_path, keep_last=keep_last)  # continues from step 1, whatever 6 and 7 are worth
    saved = save(back, 2)
    assert Checkpoint.open(saved).step == 2
    assert names(back) == ([2, 6, 7] if keep_last == 1 else [1, 2, 6, 7])


def test_a_checkpoint_that_does_not_read_back_removes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path, keep_last=1)
    good = save(one, 1)
    write = FolderWriter.write

    def write_badly(self: FolderWriter, name: str, pieces: Any) -> None:
        write(self, name, pieces)
        if name == "optimizer.safetensors":
            data = bytearray((self.folder / name).read_bytes())
            data[-1] ^= 4
            (self.folder / name).write_bytes(data)

    monkeypatch.setattr(FolderWriter, "write", write_badly)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: reads otherwise than it was written"):
        save(one, 2)
    assert [path.name for path in one.folder.iterdir()] == [good.name]
    assert Checkpoint.open(good).step == 1


def test_the_tokenizer_is_read_once(workspace: Path, tmp_path: Path) -> None:
    tokenizer = Path(shutil.copytree(workspace / "tokenizer", tmp_path / "tokenizer"))
    kept = CheckpointStore(tmp_path / "run", keep_last=1, config_toml="[model]\n", tokenizer=tokenizer)
    kept.prepare(0)
    shutil.rmtree(tokenizer)
    assert Tokenizer.load(save(kept, 1)).vocab_size == 320


def test_a_tokenizer_unlike_gpt2s_comes_along_whole(tmp_path: Path) -> None:
    vocab = dict(enumerate([b"<s>", *(bytes([byte]) for byte in range(256))]))
    tokenizer = Tokenizer(vocab, [], ["<s>"], pattern="llama3", beginning_of_text="<s>")
    tokenizer.save(tmp_path / "tokenizer")
    kept = CheckpointStore(tmp_path / "run", keep_last=1, config_toml="[model]\n", tokenizer=tmp_path / "tokenizer")
    folder = save(kept, 1)
    assert Tokenizer.load(folder).sha256() == tokenizer.sha256()
    assert "tokenizer_settings.json" in (folder / "manifest.json").read_text()
    Checkpoint.open(folder)


def test_a_configuration_without_a_model_is_named(tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    for number, (config, problem) in enumerate(
        {
            "x = 1\n": "'model'",
            "[model]\nd_model = 30\nnum_heads = 4\n": "d_model: must be divisible",
            "[model]\ncontext_length = 16777216\n": "context_length: must be at most",  # would be gigabytes of angles
        }.items()
    ):
        odd = CheckpointStore(tmp_path / f"{number}", keep_last=1, config_toml=config, tokenizer=None)
        odd_checkpoint = Checkpoint.open(odd.save(model={}, optimizer={}, state={"step": 1}))
        with pytest.raises(CheckpointError, match=rf"config\.toml: has no valid \[model\] table: {problem}"):
            odd_checkpoint.model_hparams()
    assert Checkpoint.open(saved).model_hparams().vocab_size is None


def test_a_tied_model_round_trips(make_model: Callable[..., TransformerLM], tmp_path: Path) -> None:
    model, other = make_model(tie_embeddings=True), make_model(seed=3, tie_embeddings=True)
    optimizer = AdamW(model.parameters())
    save_checkpoint(model, optimizer, 1, tmp_path / "c")
    load_checkpoint(tmp_path / "c", other, AdamW(other.parameters()))
    ids = torch.arange(8).unsqueeze(0)
    assert torch.equal(model(ids), other(ids))


def test_the_state_of_an_optimizer_comes_back_with_its_types(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(model, optimizer, 1, tmp_path / "c")
    other = torch.optim.AdamW(model.parameters())
    assert load_checkpoint(tmp_path / "c", model, other) == 1
    saved, loaded = optimizer.state_dict(), other.state_dict()
    assert saved["param_groups"] == loaded["param_groups"]
    assert type(loaded["param_groups"][0]["betas"]) is tuple
    kept = store(tmp_path)
    kept.save(model=model.state_dict(), optimizer={"optimizer": saved}, state={"step": 1})
    assert Checkpoint.open(kept.folder).optimizer_state()["optimizer"]["param_groups"] == saved["param_groups"]


def test_ids_that_end_a_text_come_along(workspace: Path, tmp_path: Path) -> None:
    tokenizer = Path(shutil.copytree(workspace / "tokenizer", tmp_path / "tokenizer"))
    kept = CheckpointStore(tmp_path / "run", keep_last=1, config_toml="[model]\n", tokenizer=tokenizer)
    assert Checkpoint.open(save(kept, 1)).eos_token_ids == ()
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": [319, 7]}', encoding="utf-8")
    kept = CheckpointStore(tmp_path / "other", keep_last=1, config_toml="[model]\n", tokenizer=tokenizer)
    assert Checkpoint.open(save(kept, 1)).eos_token_ids == (319, 7)
    for damaged in ("[319, 7]", '{"eos_token_id": "7"}', '{"eos_token_id": [true]}'):
        (tokenizer / "generation_config.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            read_eos_token_ids(tokenizer)
