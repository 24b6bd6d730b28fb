"""The plots under `plots/`, and how to write one.

A plot is a block of text in one of the files there:

    plot: the lost toy
    heroes: child beast
    cast: thing = toy; spot = nook

    <open hero>
    {hero} was sad because {hero.he} could not find {hero.his} {thing}.

    {hero} [looked|searched] behind the {furniture}, but the {thing} was not there.
    ~

    --

    ...

- One line is one sentence or a few. Lines that stand together are paraphrases: a story takes one of them. A line `~`
  says nothing. A blank line goes on to the next beat.
- `--` begins a new paragraph. `-- or` begins another version of the paragraph above it.
- `heroes` lists who can be the hero (child, beast, grownup; default child and beast), `worlds` where it can happen
  (default everywhere). `cast` names the things that stay the same all story long, with the category of each.
- The characters need no declaration: `{hero}`, `{friend}`, `{rival}`, `{elder}` and `{guest}` (of the hero's
  family), `{neighbor}` (a grown-up) and `{pet}` come to be when they are first named; `cast.py` has their forms.
- Write "a" always; it becomes "an" where it must. Sentences and quotations get their capitals by themselves, except
  after `!"` and `?"`, where only you know whether a new sentence begins. Write `," <said hero>. "And ...`: a
  quotation that goes on begins anew.

The rest of the template language is described in `templates.py`. Shared rules stand in `common.txt`, as
`rule: name` and the lines below it.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from databuilder.stories.cast import SCENES, Scene
from databuilder.stories.templates import Choice, Compiler, Rules, Sequence

_PARAGRAPH = "--"
_VARIANT = "-- or"
_SILENCE = "~"


@dataclass(frozen=True)
class Plot:
    """A compiled plot: its title, the scenes it can be set in, the cast of things, and the text."""

    title: str
    scenes: tuple[Scene, ...]
    cast: dict[str, str]  # role → category
    text: Sequence


@dataclass
class _Draft:
    """A plot as read: paragraphs of variants of beats of lines."""

    head: dict[str, str]
    paragraphs: list[list[list[list[str]]]] = field(default_factory=lambda: [[[[]]]])

    def add(self, line: str) -> None:
        if line == _PARAGRAPH:
            self.paragraphs.append([[[]]])
        elif line == _VARIANT:
            self.paragraphs[-1].append([[]])
        elif line:
            self.paragraphs[-1][-1][-1].append(line)
        elif self.paragraphs[-1][-1][-1]:
            self.paragraphs[-1][-1].append([])


@cache
def load_plots() -> tuple[Plot, ...]:
    """Read and compile every plot under `plots/`. Raises `ValueError` for a template that is not well formed."""
    rules: Rules = {}
    drafts: list[_Draft] = []
    folder = resources.files("databuilder.stories") / "plots"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".txt"):
            _read_file(file.read_text(encoding="utf-8"), rules, drafts)
    compiler = Compiler(rules)
    return tuple(_compiled(draft, compiler) for draft in drafts)


def _read_file(text: str, rules: Rules, drafts: list[_Draft]) -> None:
    rule: list[str] | None = None
    for raw in text.splitlines():
        line = raw.strip()
        key, _, value = line.partition(": ")
        if line.startswith("#"):
            continue
        if key == "rule":
            rule = rules.setdefault(value, [])
        elif key == "plot":
            rule = None
            drafts.append(_Draft({"plot": value}))
        elif rule is not None:
            rule.extend([line] if line else [])
        elif key in ("heroes", "worlds", "cast"):
            drafts[-1].head[key] = value
        elif drafts:
            drafts[-1].add(line)


def _compiled(draft: _Draft, compiler: Compiler) -> Plot:
    text: list[str | Choice] = []
    for paragraph in draft.paragraphs:
        variants = [_compiled_beats(variant, compiler) for variant in paragraph]
        text += ["\n", Choice(tuple(variants))]
    pairs = [pair.split("=") for pair in draft.head.get("cast", "").split(";") if pair]
    heroes = draft.head.get("heroes", "child beast").split()
    worlds = draft.head.get("worlds", " ".join(scene.world for scene in SCENES)).split()
    scenes = tuple(scene for scene in SCENES if scene.kind in heroes and scene.world in worlds)
    if not scenes:
        raise ValueError(f"stories: the plot {draft.head['plot']!r} has no scene with {heroes} in {worlds}")
    return Plot(
        title=draft.head["plot"],
        scenes=scenes,
        cast={role.strip(): category.strip() for role, category in pairs},
        text=tuple(text),
    )


def _compiled_beats(beats: list[list[str]], compiler: Compiler) -> Sequence:
    """Each sentence brings the space before it, so that a silent beat leaves no trace."""
    return tuple(
        Choice(tuple(() if line == _SILENCE else (" ", *compiler.compile(line)) for line in beat))
        for beat in beats
        if beat
    )
