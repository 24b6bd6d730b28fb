"""The README's commands, run as they stand there, in a folder that has what a clone has."""

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
SECONDS = 900
STEPS = {
    "transformerlm-train": ["--training.steps", "12", "--schedule.warmup-iters", "2", "--training.batch-size", "4"]
}
"""Shortens the trainings after the quick start, which itself runs in full."""


def commands() -> list[list[str]]:
    """Return the words of every `uv run transformerlm-…` and `curl …` in the README's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    found = []
    for line in words:
        ours = [place for place, word in enumerate(line) if word.startswith("transformerlm-")]
        if line[:2] == ["uv", "run"] and ours:
            found.append(line[ours[0] :])
        elif line[:1] == ["curl"]:
            found.append(line)
    return found


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment in `folder`."""
    script = Path(sys.executable).with_name(words[0])
    return subprocess.run(
        [script, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@contextlib.contextmanager
def serving(words: list[str], folder: Path, port: int) -> Iterator[None]:
    """Start the server at another port than the README's, and end it with the context."""
    script = Path(sys.executable).with_name(words[0])
    process = subprocess.Popen([script, *words[1:], "--port", str(port)], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "serving 'stories' at" in process.stderr.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_readme_shows_the_two_commands_first() -> None:
    first_block = re.search(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    assert first_block is not None
    lines = [line.split("#")[0].strip() for line in first_block.group(1).splitlines()]
    assert lines == ["uv run transformerlm-quickstart", "uv run pytest"]


def test_every_command_of_the_project_is_in_the_readme() -> None:
    scripts = re.findall(r"^(transformerlm-[\w-]+) = ", (CHECKOUT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert scripts
    assert [script for script in scripts if f"`{script}`" not in README] == []


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    for name in ("gguf", "transformers"):
        pytest.importorskip(name, reason=f"needs {name}: uv sync --group peers")
    (tmp_path / "config").symlink_to(CHECKOUT / "config")
    (tmp_path / "my_texts").mkdir()
    story = "It was a warm day. The cat sat on the wall and looked at the birds. {} birds flew away.\n<|endoftext|>\n"
    text = "".join(story.format(number) for number in range(800))
    (tmp_path / "my_texts" / "own.txt").write_text(text, encoding="utf-8")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs, answers, greedy_story = {}, [], ""
    with contextlib.ExitStack() as server:
        for words in commands():
            if words[-1] == "&":
                server.enter_context(serving(words[:-1], tmp_path, port))
            elif words[0] == "curl":
                url, body = words[-3].replace(":8000", f":{port}"), words[-1]
                with urllib.request.urlopen(url, data=body.encode("utf-8"), timeout=60) as answer:
                    answers.append(answer.read().decode("utf-8"))
            else:
                done = run(words + STEPS.get(words[0], []), tmp_path)
                assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
                outputs[words[0]] = done
                if words[-2:] == ["--sampling.temperature", "0"]:
                    greedy_story = done.stdout
    assert len(json.loads(answers[0])["choices"][0]["text"]) > 50
    assert answers[1].endswith("data: [DONE]\n\n")
    assert commands()[0] == ["transformerlm-quickstart"]
    assert outputs["transformerlm-quickstart"].stdout.count("Once upon a time") >= 1
    assert (tmp_path / "runs/stories/loss.png").stat().st_size > 1000

    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 100
        if "from transformers" in code:
            assert done.stdout == greedy_story

    again = run(["transformerlm-quickstart"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("up to date") == 3
