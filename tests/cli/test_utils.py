"""The command line made from a schema: overrides, help, exit codes, and what importing it costs."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import utils
from cli.utils import Invocation, make_parser, parse_command_line, run_command, stop_on_signals
from config.bench_infer import BenchInferConfig
from config.bench_tokenizer import BenchTokenizerConfig
from config.infer import InferConfig
from config.io import load_config
from config.make_data import MakeDataConfig
from config.quickstart import QuickstartConfig
from config.schemas import Config
from config.train import TrainConfig
from config.train_tokenizer import TrainTokenizerConfig
from transformerlm import __version__
from transformerlm.utils.errors import DataError

ROOT = Path(__file__).parents[2]
SCHEMAS = (
    TrainConfig,
    InferConfig,
    MakeDataConfig,
    TrainTokenizerConfig,
    BenchInferConfig,
    BenchTokenizerConfig,
    QuickstartConfig,
)
DATA = ("--data.train", "a.dat", "--data.valid", "b.dat", "--data.tokenizer", "t")


def parse(schema: type[Config], *words: str) -> Any:
    return parse_command_line(schema, prog="command", argv=words).load().config


def run(*words: str, action: Callable[[Any], int] = lambda _invocation: 0, schema: type[Config] = TrainConfig) -> int:
    return run_command(schema, action, prog="command", argv=words)


@pytest.mark.parametrize(
    "words",
    [
        ("--training.batch-size", "64"),
        ("--training.batch_size", "64"),
        ("--training.batch-size=64",),
        ("--training.batch_size=64",),
    ],
)
def test_an_override_may_be_spelled_in_four_ways(words: tuple[str, ...]) -> None:
    assert parse(TrainConfig, *DATA, *words).training.batch_size == 64


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.tie-embeddings"], True),
        (["--model.tie-embeddings", "true"], True),
        (["--model.tie-embeddings", "False"], False),
        (["--model.tie-embeddings=false"], False),
        ([], False),
    ],
)
def test_booleans(words: list[str], expected: bool) -> None:
    assert parse(TrainConfig, *DATA, *words).model.tie_embeddings is expected


def test_lists_take_several_words_or_several_options() -> None:
    assert parse(TrainConfig, *DATA, "--logging.backend", "console", "noop").logging.backend == ("console", "noop")
    config = parse(InferConfig, "--checkpoint", "c", "--prompt", "a b", "--prompt", "c", "--sampling.stop", "\n\n")
    assert config.inference.prompts == ("a b", "c")
    assert config.sampling.stop == ("\n\n",)
    assert parse(BenchInferConfig, "--benchmark.batch-sizes", "1", "4").benchmark.batch_sizes == (1, 4)


def test_a_word_that_only_resembles_a_list_is_taken_as_it_is() -> None:
    config = parse(InferConfig, "--checkpoint", "c", "--prompt", '["a", "b"]', "--sampling.stop", "[END]", "a, b")
    assert config.inference.prompts == ('["a", "b"]',)
    assert config.sampling.stop == ("[END]", "a, b")
    paths = parse(TrainConfig, *DATA[2:], "--data.train", "a,b.dat").data.train
    assert [str(path) for path in paths] == ["a,b.dat"]


def test_none_unsets_what_may_be_unset(write_toml: Callable[..., Path]) -> None:
    path = write_toml({"inference": {"checkpoint": "c"}, "sampling": {"top_k": 5}})
    assert parse(InferConfig, "--config", str(path)).sampling.top_k == 5
    assert parse(InferConfig, "--config", str(path), "--sampling.top-k", "none").sampling.top_k is None


def test_numbers_are_typed_by_the_schema() -> None:
    config = parse(
        TrainConfig, *DATA, "--schedule.max-learning-rate", "1", "--optimizer.weight-decay=0", "--logging.run-name", "7"
    )
    assert config.schedule.max_learning_rate == 1.0
    assert config.logging.run_name == "7"


def test_a_prompt_is_taken_as_it_is() -> None:
    prompts = ("--prompt", "--snake_case is", "--prompt", "", "--prompt", "x_y --z_w")
    config = parse(InferConfig, "--checkpoint", "a_b", *prompts)
    assert config.inference.prompts == ("--snake_case is", "", "x_y --z_w")
    assert str(config.inference.checkpoint) == "a_b"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--training.batch-sizee", "4"],
            "command line: training.batch_sizee: unknown key (got '4'); did you mean batch_size?",
        ),
        (
            ["--training.batch_sizee=4"],
            "command line: training.batch_sizee: unknown key (got '4'); did you mean batch_size?",
        ),
        (["--trainin.steps", "4"], "command line: trainin: unknown table; did you mean training?"),
        (["--confg", "x.toml"], "command line: --confg: unknown option; did you mean --config?"),
        (["--zzzzzz"], "command line: --zzzzzz: unknown option; see --help"),
        (["train.toml"], "command line: train.toml: unknown option; see --help"),
        (["--lr", "1"], "command line: --lr: unknown option; did you mean --schedule.max-learning-rate?"),
        (
            ["--optimizer.lr=0.1"],
            "command line: optimizer.lr: unknown key (got '0.1'); did you mean schedule.max_learning_rate?",
        ),
        (
            ["--batch_size", "4"],
            "command line: --batch_size: unknown option; did you mean --training.batch-size or "
            "--validation.batch-size?",
        ),
        (
            ["--schedule.weight-decay", "0"],
            "command line: schedule.weight_decay: unknown key (got '0'); did you mean optimizer.weight_decay?",
        ),
        (
            ["--data.train", '["x.dat", "y z.dat"]'],
            "command line: data.train: a list is typed as separate words, --data.train x.dat 'y z.dat' "
            """(got '["x.dat", "y z.dat"]')""",
        ),
        (
            ["--data.train-weights", "[3,1]"],
            "command line: data.train_weights: a list is typed as separate words, --data.train-weights 3 1 "
            "(got '[3,1]')",
        ),
        (
            ["--logging.backend", "console,noop"],
            "command line: logging.backend: a list is typed as separate words, --logging.backend console noop "
            "(got 'console,noop')",
        ),
        (["--training.steps", "5.0"], "command line: training.steps: should be a valid integer (got '5.0')"),
        (["--training.steps", "many"], "command line: training.steps: should be a valid integer (got 'many')"),
        (
            ["--model.tie-embeddings", "yes"],
            "command line: model.tie_embeddings: should be a valid boolean (got 'yes')",
        ),
        (
            ["--model.d-model", "100"],
            "command line: model.d_model: must be divisible by num_heads = 6 (got 100); try 102",
        ),
        (
            ["--schedule.max-learning-rate", "nan"],
            "command line: schedule.max_learning_rate: should be a finite number (got nan)",
        ),
    ],
)
def test_a_mistyped_word_is_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*DATA, *words) == 2
    assert capsys.readouterr() == ("", f"error: {expected}\n")


def test_a_missing_word_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*DATA, "--training.steps") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: command line: argument --training.steps: expected one argument")
    assert len(err.splitlines()) == 1
    assert run("--checkpoint", "c", "--prompt", "-x", schema=InferConfig) == 2
    assert "needs =" in capsys.readouterr().err
    assert parse(InferConfig, "--checkpoint", "c", "--prompt=-x").inference.prompts == ("-x",)


def test_all_mistakes_come_one_a_line_and_nothing_is_done(
    write_toml: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_toml({"model": {"d_modle": 3, "d_ff": 0}})
    monkeypatch.chdir(tmp_path)
    done: list[Any] = []
    code = run("--config", str(path), *DATA, "--training.stepz", "3", action=lambda _i: done.append(1) or 0)
    assert (code, done) == (2, [])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["error", str(path), "model.d_ff"],
        ["error", str(path), "model.d_modle"],
        ["error", "command line", "training.stepz"],
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_the_action_learns_which_settings_were_typed() -> None:
    seen: list[Invocation[InferConfig]] = []

    def action(invocation: Invocation[InferConfig]) -> int:
        seen.append(invocation)
        return 7

    assert run("--checkpoint", "c", "--prompt", "x", action=action, schema=InferConfig) == 7
    assert seen[0].overridden == {("inference", "checkpoint"), ("inference", "prompts")}


def test_print_config_is_json_and_loads_again(
    write_toml: Callable[..., Path], train_tables: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_toml(train_tables)
    assert run("--config", str(path), "--training.steps", "77", "--print-config", action=lambda _i: 1 // 0) == 0
    out, err = capsys.readouterr()
    tables = json.loads(out)
    assert err == ""
    assert tables["training"]["steps"] == 77
    kept = {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}
    again = load_config(TrainConfig, write_toml(kept, "again.toml"))
    assert again == load_config(TrainConfig, path, {("training", "steps"): 77})


def test_print_config_without_a_file_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-config", "--training.steps", "77", "--data.valid", "v.dat", action=lambda _i: 1 // 0) == 0
    out, err = capsys.readouterr()
    assert err == "without a default, null below: data.train, data.tokenizer\n"
    tables = json.loads(out)
    assert tables["data"] == {
        "train": None, "train_weights": [], "valid": "v.dat", "tokenizer": None, "mask_documents": False
    }  # fmt: skip
    assert (tables["training"]["steps"], tables["model"]["d_ff"]) == (77, 512)
    assert list(tables) == list(TrainConfig.model_fields)

    assert run("--print-config", "--training.stepz", "1", "--data.train-weights", "-1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[2] for line in err.splitlines()] == ["data.train_weights.0", "training.stepz"]


def test_print_config_of_a_file_that_lacks_a_setting_is_an_error(
    write_toml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--config", str(write_toml({"data": {"train": "a", "valid": "b"}})), "--print-config") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "data.tokenizer: is missing" in err


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_help_lists_the_words_that_a_setting_may_be(schema: type[Config]) -> None:
    text = re.sub(r"\s", "", make_parser(schema, prog="command").format_help())
    for table, table_field in schema.model_fields.items():
        for key, field in table_field.annotation.model_fields.items():  # type: ignore[union-attr]
            words = re.findall(r"Literal\[(.*?)\]", str(field.annotation))
            if words:
                choices = "|".join(word.strip("' ").lower() for word in words[0].split(","))
                assert f"--{table}.{key}".replace("_", "-") + choices in text.lower()


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_help_lists_every_setting_with_its_meaning_and_default(schema: type[Config]) -> None:
    # argparse breaks lines, also after a hyphen; without white space none of that matters
    text = re.sub(r"\s", "", make_parser(schema, prog="command").format_help())
    for table, table_field in schema.model_fields.items():
        for key, field in table_field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert f"--{table}.{key}".replace("_", "-") in text
            assert re.sub(r"\s", "", field.description or "") in text
            assert f"[{table}]" in text


def test_help_shows_defaults_and_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--help", schema=BenchInferConfig)
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "(default: 1 8)" in out
    assert "(default: 10000)" in out  # the schema's own, not the section's
    assert "(required)" in make_parser(TrainConfig, prog="command").format_help()


def test_errors_of_the_operating_system_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full(_invocation: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/x.dat")

    assert run(*DATA, action=full) == 2
    assert capsys.readouterr().err == "error: data/x.dat: No space left on device\n"

    def taken(_invocation: Any) -> int:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), ".x.tmp", None, "x")

    assert run(*DATA, action=taken) == 2
    assert capsys.readouterr().err == "error: x: Is a directory\n"

    def strange(_invocation: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        run(*DATA, action=strange)


def test_a_users_mistake_is_a_line_each_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken(_invocation: Any) -> int:
        raise DataError("a: wrong\nb: wrong")

    assert run(*DATA, action=mistaken) == 2
    assert capsys.readouterr().err == "error: a: wrong\nerror: b: wrong\n"

    def buggy(_invocation: Any) -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(*DATA, action=buggy)


def test_ctrl_c_outside_training_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_invocation: Any) -> int:
        raise KeyboardInterrupt

    assert run(*DATA, action=interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_signal_is_a_request_while_the_context_is_open() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as exit_code:
        assert exit_code() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert exit_code() == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with stop_on_signals() as exit_code:
        os.kill(os.getpid(), signal.SIGINT)
        assert exit_code() == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_reader_of_stdout_that_has_gone_is_no_error() -> None:
    program = (
        "import sys; from cli.utils import run_command; from config.train_tokenizer import TrainTokenizerConfig as C\n"
        "def action(_): print('x' * 1_000_000); return 0\n"
        "sys.exit(run_command(C, action, prog='p', argv=['--input.sources', 'a', '--tokenizer.output', 'b']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE


def test_no_command_loads_torch_or_needs_data_to_print_its_configuration_or_version(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    commands = {target.partition(":")[0]: script for script, target in scripts.items()}
    program = f"""
import contextlib, importlib, io, json, sys
scripts = {commands!r}
for name in scripts:
    command = "quickstart" if name == "cli.quickstart" else name.rpartition(".")[2].replace("_latency", "")
    toml = {str(ROOT / "config/resources")!r} + f"/{{command}}.toml"
    main = importlib.import_module(name).main
    for words in ([] if command == "quickstart" else ["--config", toml], []):
        sys.argv = ["x", "--print-config", *words]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert main() == 0, name
        json.loads(out.getvalue())
    sys.argv, out = ["x", "--version"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    assert out.getvalue().split() == [scripts[name], {__version__!r}], name
    heavy = {{"torch", "numpy", "matplotlib", "rich", "wandb", "databuilder"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_are_those_of_a_shell() -> None:
    assert (utils.EXIT_OK, utils.EXIT_USER_ERROR, utils.EXIT_INTERRUPTED, utils.EXIT_TERMINATED) == (0, 2, 130, 143)
