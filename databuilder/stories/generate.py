"""From a seed to stories, and to a corpus file."""

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from databuilder.stories.cast import Slots
from databuilder.stories.grammar import polish
from databuilder.stories.plots import load_plots
from databuilder.stories.templates import draw_index, expand
from transformerlm.hparams import END_OF_TEXT
from transformerlm.utils.files import atomic_write

_PROGRESS_INTERVAL = 500
_VERSION_STORIES = 1000


@cache
def generator_version() -> str:
    """Return a short hash of the plots, the words and some stories: equal versions write equal stories.

    Not of the code: a comment changes no story.
    """
    hashed = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.txt")):
        hashed.update(path.read_bytes())
    for story in generate_stories(_VERSION_STORIES):
        hashed.update(story.encode())
    return hashed.hexdigest()[:8]


def generate_stories(num_stories: int, seed: int = 0) -> Iterator[str]:
    """Yield `num_stories` stories. Story i depends on `(seed, i)` only: a longer corpus begins with a shorter."""
    for index in range(num_stories):
        yield write_story(seed, index)


def write_story(seed: int, index: int) -> str:
    """Write story `index` of the corpus `seed`: paragraphs separated by blank lines, no newline at the end.

    Only `Random.random` is drawn on, whose sequence for a string seed is the same in every version of Python.
    """
    draw = random.Random(f"{seed}:{index}").random
    plots = load_plots()
    plot = plots[draw_index(draw, len(plots))]
    scene = plot.scenes[int(draw() * len(plot.scenes))]
    parts: list[str] = []
    expand(plot.text, draw, parts)
    text = "".join(parts) % Slots(draw, scene, plot.cast)
    return polish(text.replace("\n ", "\n\n").lstrip("\n"))


def write_corpus(
    path: Path | str, num_stories: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write `num_stories` stories to the UTF-8 file `path`, atomically, each followed by the line `<|endoftext|>`.

    `progress(done, total)` is called now and then, and at the end.
    """
    with atomic_write(path) as file:
        for done, story in enumerate(generate_stories(num_stories, seed), start=1):
            file.write(f"{story}\n{END_OF_TEXT}\n".encode())
            if progress is not None and (done % _PROGRESS_INTERVAL == 0 or done == num_stories):
                progress(done, num_stories)
