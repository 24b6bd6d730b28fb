"""The rooms of the project import one another in one direction only, and the light ones stay light."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_imports_point_down_the_list_of_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True) == 0, "see the report above"


def test_no_package_has_the_name_of_one_of_the_standard_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert not sys.stdlib_module_names & set(packages)


def test_uv_takes_a_python_that_the_project_supports() -> None:
    """Without Python 3.15, for which torch has no wheels, and whose standard library has a package `profiling`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    chosen = (ROOT / ".python-version").read_text(encoding="utf-8").split()[0]
    assert f"Programming Language :: Python :: {chosen}" in project["classifiers"]


CORE = """
tokenizer/pretokenize tokenizer/bpe models/layers models/attention models/transformer training/loss training/optim
training/schedule training/data training/trainer training/loop inference/sampling inference/generate
""".split()


def test_the_core_can_be_read_in_an_afternoon() -> None:
    paths = [ROOT / "transformerlm" / f"{name}.py" for name in CORE]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= 2000


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("transformerlm, transformerlm.hparams, transformerlm.utils.errors", "torch numpy"),
        ("config.train, config.infer, config.make_data, config.train_tokenizer, config.quickstart", "torch numpy"),
        ("config.serve, transformerlm.serving.settings", "torch numpy fastapi uvicorn"),
        ("config.inspect_data, config.bench_infer, config.bench_tokenizer, config.io", "torch numpy"),
        (
            "cli.train, cli.infer, cli.make_data, cli.train_tokenizer, cli.quickstart, cli.inspect_data",
            "torch numpy matplotlib rich wandb",
        ),
        (
            "config.import_model, cli.import_model, cli.beginning, config.export, cli.export",
            "torch numpy matplotlib rich wandb gguf",
        ),
        ("cli.evaluate, config.evaluate", "torch numpy rich lm_eval datasets databuilder"),
        ("cli.serve", "torch numpy matplotlib rich wandb fastapi uvicorn"),
        ("logger, profiling", "torch wandb"),
        ("transformerlm.tokenizer", "torch"),
    ],
)
def test_importing_loads_nothing_heavy(modules: str, unwanted: str) -> None:
    program = f"import sys, {modules}; print(*[name for name in {unwanted.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_library_alone_needs_none_of_the_application() -> None:
    program = """
import sys
sys.path.insert(0, ".")
for name in ("cli", "config", "logger", "profiling", "databuilder", "benchmarking"):
    sys.modules[name] = None
import transformerlm.evaluation, transformerlm.inference.predictor, transformerlm.models, transformerlm.tokenizer
import transformerlm.training
assert "lm_eval" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
