"""The built-in corpus: a pure function of the seed, well-formed English, and rich enough not to repeat itself."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from databuilder.stories import generate_stories, generator_version, ngram_overlap, write_corpus, write_story
from databuilder.stories.cast import SCENES, Slots
from databuilder.stories.grammar import comparative, gerund, past, plural, polish, takes_an
from databuilder.stories.lexicon import load_lexicon
from databuilder.stories.plots import load_plots
from databuilder.stories.templates import Compiler, expand
from transformerlm.hparams import END_OF_TEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(generate_stories(2500, seed=7))


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    longer = list(generate_stories(40, seed=3))
    assert list(generate_stories(15, seed=3)) == longer[:15]
    assert write_story(3, 39) == longer[39]


def test_other_seeds_and_indices_give_other_stories(stories: list[str]) -> None:
    assert len(set(stories)) == len(stories)
    assert not set(stories) & set(generate_stories(200, seed=8))


def test_the_vocabulary_is_rich(stories: list[str]) -> None:
    # 20,000 stories have a few hundred more than these; rare words come late.
    words = {word for story in stories for word in re.findall(r"[a-z]+", story.lower())}
    assert len(words) > 2500


def test_every_plot_is_told_in_every_scene() -> None:
    """Expand each plot in each of its scenes, so that no slot lacks a category or a form there."""
    for plot in load_plots():
        for number, scene in enumerate(plot.scenes * 20):
            draw = _sequence(number)
            parts: list[str] = []
            expand(plot.text, draw, parts)
            assert "".join(parts) % Slots(draw, scene, plot.cast)


def test_there_are_many_plots_and_every_scene_is_used() -> None:
    plots = load_plots()
    assert len({plot.title for plot in plots}) == len(plots) >= 20
    assert {scene for plot in plots for scene in plot.scenes} == set(SCENES)


def test_stories_have_paragraphs_and_a_fitting_length(stories: list[str]) -> None:
    for story in stories:
        assert 3 <= len(story.split("\n\n")) <= 7
        assert 60 <= len(story.split()) <= 320


def test_no_trace_of_the_templates_is_left(stories: list[str]) -> None:
    for story in stories:
        assert not re.search(r"[{}\[\]<>|%@~_]", story), story
        assert END_OF_TEXT not in story
        assert not re.search(r"  |[ \t]\n|\n |\n{3}|^\s|\s$", story), story
        assert not re.search(r" [.,!?;]|[,;][.,!?]|[.!?]{2}", story), story


def test_quotation_marks_are_balanced(stories: list[str]) -> None:
    for paragraph in (part for story in stories for part in story.split("\n\n")):
        assert paragraph.count('"') % 2 == 0, paragraph
        for quoted in paragraph.split('"')[1::2]:
            assert quoted == quoted.strip() and quoted[-1] in ".,!?", paragraph


def test_sentences_and_quotations_begin_with_capitals(stories: list[str]) -> None:
    for paragraph in (part for story in stories for part in story.split("\n\n")):
        assert paragraph.lstrip('"')[0].isupper(), paragraph
        assert paragraph[-1] in '.!?"', paragraph
        assert not re.search(r'[.!?] "?[a-z]|\." [a-z]', paragraph), paragraph
        assert all(quoted[0].isupper() for quoted in paragraph.split('"')[1::2]), paragraph


def test_articles_fit_the_words_after_them(stories: list[str]) -> None:
    for story in stories:
        for article, word in re.findall(r"\b([Aa]n?) ([A-Za-z]+)", story):
            assert (article.lower() == "an") == takes_an(word), f"{article} {word}"


def test_the_promised_openings_are_common(stories: list[str]) -> None:
    share = 1 / len(stories)
    assert sum(story.startswith("Once upon a time") for story in stories) * share > 0.05
    assert sum(bool(re.match(r"One day, a .* named", story)) for story in stories) * share > 0.03
    assert sum(bool(re.match(r"\w+ was [\w ]+ because ", story)) for story in stories) * share > 0.05


def test_validation_stories_are_not_copies(stories: list[str]) -> None:
    assert ngram_overlap(stories, generate_stories(100, seed=99), n=10) < 0.2


def test_overlap_counts_positions() -> None:
    assert ngram_overlap(["a b c d"], ["a b c d"], n=3) == 1.0
    assert ngram_overlap(["a b c d"], ["b c d e", "x y z"], n=3) == pytest.approx(1 / 3)
    assert ngram_overlap(["a b", "c d"], ["a b c d"], n=3) == 0.0  # no n-gram crosses the border of a text
    assert ngram_overlap([], ["too short"], n=10) == 0.0
    with pytest.raises(ValueError, match="at least one word"):
        ngram_overlap([], [], n=0)


def test_write_corpus(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = tmp_path / "new" / "stories.txt"
    write_corpus(path, 5, seed=1, progress=lambda done, total: calls.append((done, total)))
    expected = "".join(f"{story}\n<|endoftext|>\n" for story in generate_stories(5, seed=1))
    assert path.read_bytes() == expected.encode("utf-8")
    assert calls[-1] == (5, 5)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_corpus_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("old", encoding="utf-8")

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(path, 3, seed=0, progress=stop)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("fox", "foxes"),
        ("mouse", "mice"),
        ("toy boat", "toy boats"),
        ("berry", "berries"),
        ("monkey", "monkeys"),
    ],
)
def test_plural(word: str, expected: str) -> None:
    assert plural(word) == expected


@pytest.mark.parametrize(
    ("verb", "past_form", "ing_form"),
    [("hop", "hopped", "hopping"), ("cry", "cried", "crying"), ("smile", "smiled", "smiling"),
     ("look", "looked", "looking"), ("wander", "wandered", "wandering"), ("tiptoe", "tiptoed", "tiptoeing"),
     ("chew", "chewed", "chewing")],
)  # fmt: skip
def test_regular_verbs(verb: str, past_form: str, ing_form: str) -> None:
    assert (past(verb), gerund(verb)) == (past_form, ing_form)


def test_comparatives() -> None:
    assert [comparative(word) for word in ("big", "tiny", "wise", "small")] == [
        "bigger",
        "tinier",
        "wiser",
        "smaller",
    ]
    assert comparative("big", "est") == "biggest"


def test_polish_sets_articles_and_capitals() -> None:
    raw = 'a owl met a unicorn for a hour. "what a honest {x}!" she said, "come." they left.'
    assert polish(raw) == 'An owl met a unicorn for an hour. "What an honest {x}!" she said, "Come." They left.'


@pytest.mark.parametrize("template", ["[a|b", "a]", "a|b", "{open", "<no such rule>", "100%"])
def test_malformed_templates_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="stories:"):
        Compiler({}).compile(template)


def test_templates_expand() -> None:
    compiler = Compiler({"greet": ["hello @, <shout @>"], "shout": ["{@.he}!"]})
    out: list[str] = []
    expand(compiler.compile("[a|b] <greet hero>"), lambda: 0.9, out)
    assert "".join(out) == "b hello %(hero)s, %(hero.he)s!"


def test_a_slot_stays_and_a_category_changes() -> None:
    slots = Slots(_sequence(1), SCENES[0], {"thing": "toy"})
    assert slots["thing"] == slots["thing"]
    assert slots["Thing"][0].isupper()
    assert len({slots["color"] for _ in range(8)}) == 8
    assert slots["hero"] != slots["friend"]
    with pytest.raises(ValueError, match="no category 'nonsense'"):
        slots["nonsense"]
    with pytest.raises(ValueError, match="no form"):
        slots["hero.nonsense"]


def test_no_list_of_words_repeats_itself() -> None:
    for category, entries in load_lexicon().entries.items():
        words = [entry[""] for entry in entries]
        repeated = {word for word in words if words.count(word) > 1}
        assert not repeated, f"{category}: {', '.join(sorted(repeated))}"


def test_generation_is_lazy() -> None:
    assert len(list(islice(generate_stories(10**12), 2))) == 2


def _sequence(number: int) -> Callable[[], float]:
    return random.Random(number).random


def test_the_version_is_that_of_the_stories_and_not_of_the_comments(tmp_path: Path) -> None:
    def version() -> str:
        script = "from databuilder.stories import generator_version; print(generator_version())"
        path = os.pathsep.join((str(tmp_path), str(ROOT)))
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path,
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.stdout.strip()

    shutil.copytree(ROOT / "databuilder/stories", tmp_path / "databuilder/stories")
    (tmp_path / "databuilder/__init__.py").touch()
    code, words = (tmp_path / "databuilder/stories" / name for name in ("grammar.py", "words"))
    before = version()
    assert before == generator_version()
    code.write_text(code.read_text() + "\n# A comment.\n")
    assert version() == before
    list_of_words = sorted(words.glob("*.txt"))[0]
    list_of_words.write_text(list_of_words.read_text() + "\n# A comment in a list of words is part of the list.\n")
    assert version() != before
