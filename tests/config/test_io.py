"""Every mistake is named with file, table and key, all of them at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from config.bench_infer import BenchInferConfig
from config.bench_train import BenchTrainConfig
from config.infer import InferConfig
from config.io import load_config, read_toml, to_json, to_toml
from config.make_data import MakeDataConfig
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm.utils.errors import ConfigError

RESOURCES = Path(__file__).parents[2] / "config" / "resources"
DATA = {"train": "a.dat", "valid": "b.dat", "tokenizer": "t"}


def messages(schema: type, path: Path | None, overrides: dict[tuple[str, str], Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path, overrides)
    return str(caught.value).splitlines()


LLAMA3 = {
    "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
    "rope_original_context": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"model": {"d_modle": 64}}, "model.d_modle: unknown key (got 64); did you mean d_model?"),
        ({"model": {"num_heads": "six"}}, "model.num_heads: should be a valid integer (got 'six')"),
        ({"model": {"num_heads": 6.5}}, "model.num_heads: should be a valid integer (got 6.5)"),
        ({"model": {"num_layers": 0}}, "model.num_layers: should be greater than 0 (got 0)"),
        ({"model": {"tie_embeddings": 1}}, "model.tie_embeddings: should be a valid boolean (got 1)"),
        ({"model": {"d_model": 190}}, "model.d_model: must be divisible by num_heads = 6 (got 190); try 192"),
        (
            {"model": {"d_model": 30}},
            "model.d_model: d_model / num_heads = 5 must be even for rotary positions (got 30); try 36",
        ),
        (
            {"model": {"num_kv_heads": 4}},
            "model.num_kv_heads: must divide num_heads = 6 (got 4); use one of [1, 2, 3, 6]",
        ),
        ({"model": {"num_layers": 10_001}}, "model.num_layers: should be less than or equal to 10000 (got 10001)"),
        (
            {"model": {"context_length": 1 << 24}},
            "model.context_length: must be at most 8388608 with heads of 32 (got 16777216)",
        ),
        ({"model": {"head_size": 7}}, "model.head_size: should be a multiple of 2 (got 7)"),
        (
            {"model": {"rope_scaling": "yarn"}},
            "model.rope_scaling: should be 'linear' or 'llama3' (got 'yarn')",
        ),
        (
            {"model": {"rope_scaling": "linear"}},
            "model.rope_factor: must be given with rope_scaling linear (got nothing)",
        ),
        ({"model": {"rope_factor": 2.0}}, "model.rope_factor: must be unset with rope_scaling unset (got 2.0)"),
        (
            {"model": LLAMA3 | {"rope_low_freq_factor": 4.0}},
            "model.rope_low_freq_factor: must be below rope_high_freq_factor = 4.0 (got 4.0)",
        ),
        ({"model": {"rope_theta": float("nan")}}, "model.rope_theta: should be a finite number (got nan)"),
        (
            {"schedule": {"warmup_iters": 11, "cosine_cycle_iters": 10}},
            "schedule.warmup_iters: must not exceed cosine_cycle_iters = 10 (got 11)",
        ),
        (
            {"schedule": {"warmup_iters": 100}, "training": {"steps": 50}},
            "schedule.warmup_iters: must not exceed training.steps = 50, where the schedule ends (got 100)",
        ),
        (
            {"training": {"steps": 50}},
            "schedule.warmup_iters: must not exceed training.steps = 50, where the schedule ends "
            "(it is 100 unless it is set)",
        ),
        (
            {"model": {"num_heads": 5}},
            "model.d_model: must be divisible by num_heads = 5 (it is 192 unless it is set); try 195",
        ),
        (
            {"schedule": {"name": "wsd", "cosine_cycle_iters": 500}},
            "schedule.cosine_cycle_iters: must be unset with the schedule wsd, which ends at training.steps (got 500)",
        ),
        (
            {"schedule": {"name": "wsd", "warmup_iters": 51}, "training": {"steps": 50}},
            "schedule.warmup_iters: must not exceed training.steps = 50, where the schedule ends (got 51)",
        ),
        (
            {"schedule": {"decay_fraction": 1.5}},
            "schedule.decay_fraction: should be less than or equal to 1 (got 1.5)",
        ),
        ({"schedule": {"name": "linear"}}, "schedule.name: should be 'cosine' or 'wsd' (got 'linear')"),
        ({"optimizer": {"name": "moun"}}, "optimizer.name: should be 'adamw' or 'muon' (got 'moun')"),
        (
            {"optimizer": {"embedding_lr_scale": 0.0}},
            "optimizer.embedding_lr_scale: should be greater than 0 (got 0.0)",
        ),
        (
            {"schedule": {"min_learning_rate": 0.1, "max_learning_rate": 0.01}},
            "schedule.min_learning_rate: must not exceed max_learning_rate = 0.01 (got 0.1)",
        ),
        (
            {"training": {"batch_size": 10, "micro_batch_size": 3}},
            "training.micro_batch_size: must divide batch_size = 10 (got 3)",
        ),
        ({"training": {"device": "gpu"}}, "training.device: should be 'auto', 'cpu', 'cuda' or 'mps' (got 'gpu')"),
        ({"logging": {"run_name": "a/b"}}, "logging.run_name: must be a plain folder name (got 'a/b')"),
        (
            {"data": {**DATA, "train": []}},
            "data.train: list should have at least 1 item after validation, not 0 (got [])",
        ),
        ({"data": {**DATA, "train": ["a", "a"]}}, "data.train: must name different files (got ['a', 'a'])"),
        (
            {"data": {**DATA, "train": ["a", "b"], "train_weights": [1]}},
            "data.train_weights: must be as many as the files of train, 2 (got [1.0])",
        ),
        (
            {"data": {**DATA, "train_weights": [0]}},
            "data.train_weights.0: should be greater than 0 (got 0)",
        ),
        ({"logging": {"run_name": ".."}}, "logging.run_name: must be a plain folder name (got '..')"),
        (
            {"logging": {"backend": ["console", "wanb"]}},
            "logging.backend.1: should be 'console', 'wandb' or 'noop' (got 'wanb')",
        ),
        ({"modell": {}}, "modell: unknown table; did you mean model?"),
        ({"model": 3}, "model: should be a table (got 3)"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split(" (got")[0],
)
def test_each_mistake_is_named_with_its_place(
    table: dict[str, Any], expected: str, write_toml: Callable[..., Path]
) -> None:
    path = write_toml({"data": DATA, **table})
    assert messages(TrainConfig, path) == [f"{path}: {expected}"]


def test_a_missing_key_is_explained_and_a_missing_table_means_all_its_required_keys(
    write_toml: Callable[..., Path],
) -> None:
    path = write_toml({"data": {"train": "a.dat", "valid": "b.dat"}})
    assert messages(TrainConfig, path) == [
        f"{path}: data.tokenizer: is missing: Folder of the tokenizer that made the token files."
    ]
    assert [line.split(": is missing")[0] for line in messages(TrainConfig, None)] == [
        "command line: data.train",
        "command line: data.valid",
        "command line: data.tokenizer",
    ]


def test_mistakes_of_all_tables_are_reported_at_once(write_toml: Callable[..., Path]) -> None:
    path = write_toml(
        {
            "data": {"train": "a.dat", "tokenizer": "t"},
            "model": {"d_model": 100, "num_kv_heads": 4},
            "training": {"steps": "many", "bath_size": 4},
            "validation": {"windows": -1},
            "trainin": {"steps": 3},
        }
    )
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in messages(TrainConfig, path)] == [
        "trainin",
        "data.valid",
        "model.d_model",
        "model.num_kv_heads",
        "training.steps",
        "training.bath_size",
        "validation.windows",
    ]


def test_a_key_that_resembles_none_lists_those_there_are(write_toml: Callable[..., Path]) -> None:
    [line] = messages(TrainConfig, write_toml({"data": DATA, "checkpoint": {"zzz": 1}}))
    assert line.endswith("checkpoint.zzz: unknown key (got 1); known are interval, keep_last")


def test_a_wrong_value_does_not_bring_up_what_is_computed_from_it(write_toml: Callable[..., Path]) -> None:
    lines = messages(TrainConfig, write_toml({"data": DATA, "model": {"num_heads": "6", "d_model": 1.5}}))
    assert [line.split(": ")[1] for line in lines] == ["model.d_model", "model.num_heads"]


def test_a_wrong_item_does_not_make_its_list_too_short_as_well() -> None:
    sizes = {("benchmark", "sizes"): ["Q"]}
    (message,) = messages(BenchTrainConfig, RESOURCES / "bench_train.toml", sizes)
    assert message.startswith("command line: benchmark.sizes.0: should be 'S', 'M'")


@pytest.mark.parametrize(
    ("vocab_size", "special_tokens", "expected"),
    [
        (256, ["<|endoftext|>"], "must be at least 257: 256 bytes and 1 special tokens (got 256)"),
        (300, ["a", "a"], "must be different and of at least two bytes (got ['a', 'a'])"),
        (300, [""], "must be different and of at least two bytes (got [''])"),
    ],
)
def test_a_vocabulary_must_hold_the_bytes_and_distinct_special_tokens(
    vocab_size: int, special_tokens: list[str], expected: str, write_toml: Callable[..., Path]
) -> None:
    tokenizer = {"vocab_size": vocab_size, "special_tokens": special_tokens, "output": "t"}
    [line] = messages(TrainTokenizerConfig, write_toml({"input": {"sources": ["x"]}, "tokenizer": tokenizer}))
    assert line.endswith(expected)


@pytest.mark.parametrize(
    ("given_input", "given_output", "key"),
    [
        ({"valid_sources": ["v"]}, {}, "output.valid"),
        ({"valid_fraction": 0.0}, {"valid": "v.dat"}, "input.valid_fraction"),
        ({}, {"valid": "t.dat"}, "output.valid"),
        ({"valid_fraction": 1.0}, {}, "input.valid_fraction"),
        ({"sources": []}, {}, "input.sources"),
    ],
)
def test_impossible_data_settings(
    given_input: dict[str, Any], given_output: dict[str, Any], key: str, write_toml: Callable[..., Path]
) -> None:
    path = write_toml(
        {
            "input": {"sources": ["x"], **given_input},
            "output": {"tokenizer": "t", "train": "t.dat", **given_output},
        }
    )
    [line] = messages(MakeDataConfig, path)
    assert line.startswith(f"{path}: {key}: ")


def test_sampling_has_limits(write_toml: Callable[..., Path]) -> None:
    path = write_toml(
        {"inference": {"checkpoint": "c"}, "sampling": {"top_p": 1.5, "temperature": -1.0, "top_k": 0, "stop": [""]}}
    )
    assert [line.split(": ")[1] for line in messages(InferConfig, path)] == [
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
    ]
    [line] = messages(InferConfig, write_toml({"inference": {"checkpoint": "c"}, "sampling": {"stop": [""]}}))
    assert "sampling.stop: must not hold an empty string" in line


def test_a_benchmark_must_fit_the_context(write_toml: Callable[..., Path]) -> None:
    path = write_toml({"benchmark": {"prompt_tokens": 250, "new_tokens": 10}})
    [line] = messages(BenchInferConfig, path)
    expected = "prompt_tokens + new_tokens = 260 must fit in model.context_length = 256 (got 10)"
    assert line == f"{path}: benchmark.new_tokens: {expected}"


@pytest.mark.parametrize("content", [b"[data\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_not_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    [line] = messages(TrainConfig, path)
    assert line.startswith(f"{path}: ")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    [line] = messages(TrainConfig, tmp_path / "none.toml")
    assert line == f"{tmp_path / 'none.toml'}: there is no such file; the shipped ones are in config/resources"
    [line] = messages(TrainConfig, tmp_path)
    assert line.startswith(f"{tmp_path}: cannot be read")


def test_mistakes_say_whether_they_stand_in_the_file_or_were_typed(write_toml: Callable[..., Path]) -> None:
    path = write_toml({"data": DATA, "model": {"d_model": 0}, "extra": {}})
    overrides = {("training", "steps"): "x", ("mdoel", "d_ff"): 3, ("logging", "backend"): (1,)}
    assert [line.rpartition(": ")[0] for line in messages(TrainConfig, path, overrides)] == [
        f"{path}: extra",
        "command line: mdoel",
        f"{path}: model.d_model",
        "command line: training.steps",
        "command line: logging.backend.0",
    ]


def test_overrides_win_over_the_file_and_the_file_over_defaults(write_toml: Callable[..., Path]) -> None:
    path = write_toml({"data": DATA, "training": {"steps": 500, "batch_size": 8}})
    config = load_config(TrainConfig, path, {("training", "steps"): 600})
    assert (config.training.steps, config.training.batch_size, config.training.seed) == (600, 8, 0)


def test_what_is_computed_from_other_settings(write_toml: Callable[..., Path]) -> None:
    path = write_toml({"data": DATA, "model": {"d_model": 512, "num_heads": 8}})
    model = load_config(TrainConfig, path).model
    assert (model.num_kv_heads, model.d_ff, model.vocab_size) == (8, 1408, None)


def test_a_backend_may_be_one_name_or_a_list(write_toml: Callable[..., Path]) -> None:
    for given_value, expected in (("noop", ("noop",)), (["console", "noop"], ("console", "noop"))):
        path = write_toml({"data": DATA, "logging": {"backend": given_value}})
        assert load_config(TrainConfig, path).logging.backend == expected


def test_a_table_keeps_the_schemas_own_defaults_when_it_is_given_in_part(write_toml: Callable[..., Path]) -> None:
    config = load_config(BenchInferConfig, write_toml({"model": {"num_layers": 2}}))
    assert (config.model.vocab_size, config.model.num_layers) == (10_000, 2)


def test_written_and_read_again_a_configuration_is_the_same(
    train_tables: dict[str, dict[str, Any]], write_toml: Callable[..., Path], tmp_path: Path
) -> None:
    train_tables["logging"]["backend"] = ["noop", "console"]
    config = load_config(TrainConfig, write_toml(train_tables))
    (tmp_path / "again.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(TrainConfig, tmp_path / "again.toml") == config


@given(stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_any_text_survives_the_round_trip(stop: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("toml") / "c.toml"
    path.write_text(tomli_w.dumps({"inference": {"checkpoint": "c"}, "sampling": {"stop": stop}}), encoding="utf-8")
    config = load_config(InferConfig, path)
    assert config.sampling.stop == tuple(stop)
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_toml(path)["sampling"]["stop"] == stop


def test_settings_cannot_be_changed(write_toml: Callable[..., Path]) -> None:
    config = load_config(TrainConfig, write_toml({"data": DATA}))
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 3  # type: ignore[misc]
    assert '"steps": 1000' in to_json(config)
