"""The word lists under `words/`: themed categories, each entry with its inflected forms.

A file holds lines `category: entry, entry, ...` (indented lines go on) under a heading that says what the entries
are and so which forms they have:

- `[nouns]`: `{toy}` and the plural `{toy.s}`;
- `[verbs]`: `{go}`, past `{go.ed}`, `{go.ing}`; an irregular one is written `run/ran/running`;
- `[adjectives]`: `{size}`, `{size.er}`, `{size.est}`;
- `[places]`: written `in the park`: `{place.at}` is the whole, `{place}` is "the park";
- `[beasts]`: written `fox/paw/den` or `lamb/hoof/barn/sheep`: `{beast}`, `{beast.hand}`, `{beast.hands}`,
  `{beast.home}`, `{beast.adult}`;
- `[phrases]`: taken as they are; entries are separated by `;` and may hold slots themselves.

A category `name@world` or `name@kind` is the `name` of stories in that world (town, wood ...) or with that kind of
hero (child, beast, grownup).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from databuilder.stories import grammar

Entry = dict[str, str]  # form → text: {"": "mouse", ".s": "mice"}


@dataclass(frozen=True)
class Lexicon:
    """All categories: their entries, and for quick drawing the list of each form's texts."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    forms: dict[str, list[str]] = field(default_factory=dict)

    def add(self, category: str, entries: list[Entry]) -> None:
        """Add a category; every entry has the same forms."""
        if category in self.entries:
            raise ValueError(f"words: category {category!r} is defined twice")
        self.entries[category] = entries
        for form in entries[0]:
            self.forms[category + form] = [entry[form] for entry in entries]


def _noun(text: str) -> Entry:
    return {"": text, ".s": grammar.plural(text)}


def _verb(text: str) -> Entry:
    if "/" in text:
        base, past, gerund = text.split("/")
        return {"": base, ".ed": past, ".ing": gerund}
    head, _, rest = text.partition(" ")
    tail = f" {rest}" if rest else ""
    return {"": text, ".ed": grammar.past(head) + tail, ".ing": grammar.gerund(head) + tail}


def _adjective(text: str) -> Entry:
    return {"": text, ".er": grammar.comparative(text), ".est": grammar.comparative(text, "est")}


def _place(text: str) -> Entry:
    return {"": text.partition(" ")[2], ".at": text}


def _beast(text: str) -> Entry:
    kind, hand, home, *adult = text.split("/")
    return {
        "": kind,
        ".hand": hand,
        ".hands": grammar.plural(hand),
        ".home": home,
        ".adult": adult[0] if adult else kind,
    }


def _phrase(text: str) -> Entry:
    return {"": text.replace("{", "%(").replace("}", ")s")}


_READERS: dict[str, Callable[[str], Entry]] = {
    "nouns": _noun,
    "verbs": _verb,
    "adjectives": _adjective,
    "places": _place,
    "beasts": _beast,
    "phrases": _phrase,
}


@cache
def load_lexicon() -> Lexicon:
    """Read every file under `words/`. Raises `ValueError` for a line that is not of the form."""
    lexicon = Lexicon()
    folder = resources.files("databuilder.stories") / "words"
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".txt"):
            _read_file(lexicon, file.name, file.read_text(encoding="utf-8"))
    return lexicon


@cache
def resolve(category: str, tags: tuple[str, ...]) -> str:
    """Return the full name of `category` for a scene with these tags: the most special one there is.

    Raises `ValueError` when there is none.
    """
    lexicon = load_lexicon()
    candidates = (*(f"{category}@{tag}" for tag in tags), category)
    for name in candidates:
        if name in lexicon.entries:
            return name
    raise ValueError(f"words: there is no category {category!r} (looked for {', '.join(candidates)})")


def _read_file(lexicon: Lexicon, name: str, text: str) -> None:
    kind = ""
    for line in text.replace("\n ", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            kind = line.strip("[]")
            continue
        category, colon, rest = line.partition(":")
        if not colon or kind not in _READERS:
            raise ValueError(f"words/{name}: expected 'category: entry, entry' under a heading, got {line[:60]!r}")
        separator = ";" if kind == "phrases" else ","
        words = [" ".join(word.split()) for word in rest.split(separator)]
        lexicon.add(category, [_READERS[kind](word) for word in words if word])
