"""Who is in a story: the scene, its characters and its things, drawn when they are first named.

Forms of a character: `{hero}` the name, `.he .him .his .himself`, `.kind` ("girl", "fox", "baker"), `.trait` ("brave"),
`.the` ("the girl", "the little fox"), `.hand .hands` ("paw", "paws"), `.home` ("house", "den"). An elder has `.kin`
("grandma") as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from databuilder.stories.grammar import plural
from databuilder.stories.lexicon import Entry, Lexicon

_PRONOUNS: dict[str, Entry] = {
    "she": {".he": "she", ".him": "her", ".his": "her", ".himself": "herself"},
    "he": {".he": "he", ".him": "him", ".his": "his", ".himself": "himself"},
}
# Friends of the other sex make "he" and "she" clear; friends of the same sex are common too.
_OTHER_SEX_SHARE = 0.7


@dataclass(frozen=True)
class Scene:
    """Where a story happens and who its hero is: `kind` is child, beast or grownup."""

    world: str
    kind: str

    @property
    def tags(self) -> tuple[str, str]:
        """The suffixes of the categories that hold here, as in `place@wood`."""
        return (self.world, self.kind)


SCENES = (
    *[Scene("town", "child")] * 3,
    Scene("country", "child"),
    Scene("shore", "child"),
    *[Scene("wood", "beast")] * 2,
    Scene("country", "beast"),
    Scene("warm", "beast"),
    Scene("shore", "beast"),
    *[Scene("town", "grownup")] * 2,
    Scene("country", "grownup"),
)


class Slots(dict[str, str]):
    """The words of one story: what a slot stands for, found when the slot is first asked for.

    Characters and the plot's cast stay; a slot named after a category is drawn anew each time, and gives the same word
    again only when half of the category has been used.
    """

    def __init__(self, lexicon: Lexicon, random: Callable[[], float], scene: Scene, cast: dict[str, str]) -> None:
        super().__init__()
        self._lexicon = lexicon
        self._random = random
        self._scene = scene
        self._cast = cast
        self._used: dict[str, set[int]] = {}

    def __missing__(self, key: str) -> str:
        if key[0].isupper():
            text = self[key[0].lower() + key[1:]]
            return text[0].upper() + text[1:]
        role, dot, form = key.partition(".")
        if role in _CHARACTERS and role not in self:
            self._bind(role, _CHARACTERS[role](self))
            return self[key]
        if role in self._cast and role not in self:
            self._bind(role, self.draw(self._cast[role]))
            return self[key]
        if role in self:
            raise ValueError(f"stories: {role!r} has no form {form!r}")
        category = _resolved(self._lexicon, role, self._scene)
        text = self._lexicon.forms[category + dot + form][self._index(category)]
        return text % self if "%(" in text else text

    def draw(self, category: str) -> Entry:
        """Draw an entry of a category with all its forms."""
        category = _resolved(self._lexicon, category, self._scene)
        return self._lexicon.entries[category][self._index(category)]

    def chance(self, share: float) -> bool:
        """Be true in `share` of the cases."""
        return self._random() < share

    @property
    def kind(self) -> str:
        """The kind of the hero."""
        return self._scene.kind

    def _bind(self, role: str, entry: Entry) -> None:
        for form, text in entry.items():
            self[role + form] = text % self if "%(" in text else text

    def _index(self, category: str) -> int:
        size = len(self._lexicon.entries[category])
        used = self._used.setdefault(category, set())
        if 2 * len(used) >= size:
            used.clear()
        index = int(self._random() * size)
        while index in used:
            index = int(self._random() * size)
        used.add(index)
        return index


@cache
def _resolved_name(category: str, scene: Scene) -> str:
    from databuilder.stories.lexicon import load_lexicon

    return load_lexicon().resolve(category, scene.tags)


def _resolved(lexicon: Lexicon, category: str, scene: Scene) -> str:
    return category if category in lexicon.entries else _resolved_name(category, scene)


def _hero(slots: Slots) -> Entry:
    return _peer(slots, "she" if slots.chance(0.5) else "he", slots.kind)


def _companion(slots: Slots) -> Entry:
    hero_is = slots["hero.he"]
    other = "he" if hero_is == "she" else "she"
    kind = "child" if slots.kind == "grownup" else slots.kind
    return _peer(slots, other if slots.chance(_OTHER_SEX_SHARE) else hero_is, kind)


def _peer(slots: Slots, pronoun: str, kind: str) -> Entry:
    """Make a character of the hero's sort: a child, a young animal, or a grown-up with a job."""
    trait = slots["trait"]
    if kind == "beast":
        beast = slots.draw("beast")
        body = {".kind": beast[""], ".the": f"the little {beast['']}", ".hand": beast[".hand"], ".home": beast[".home"]}
        name = slots["beastname"]
    else:
        noun = slots["job"] if kind == "grownup" else {"she": "girl", "he": "boy"}[pronoun]
        body = {".kind": noun, ".the": f"the {noun}", ".hand": "hand", ".home": "house"}
        name = slots["girlname" if pronoun == "she" else "boyname"]
    return {"": name, ".trait": trait, ".hands": plural(body[".hand"]), **body, **_PRONOUNS[pronoun]}


def _elder(slots: Slots) -> Entry:
    pronoun = "she" if slots.chance(0.5) else "he"
    kin = slots["kinshe" if pronoun == "she" else "kinhe"]
    if slots.kind == "beast":
        kind, hand = slots["hero.kind"], slots["hero.hand"]
        name = f"{kin.capitalize()} {kind.title()}"
    else:
        hand = "hand"
        aunt = {"aunt": "girlname", "uncle": "boyname"}.get(kin)
        name = f"{kin.capitalize()} {slots[aunt]}" if aunt else kin.capitalize()
    return {"": name, ".kin": kin, ".hand": hand, ".hands": plural(hand), **_PRONOUNS[pronoun]}


def _neighbor(slots: Slots) -> Entry:
    pronoun = "she" if slots.chance(0.5) else "he"
    if slots.kind == "beast":
        beast = slots.draw("beast")
        kind, hand, name = beast[""], beast[".hand"], f"Old {beast[''].title()}"
        the = f"the old {kind}"
    else:
        kind, hand = slots["job"], "hand"
        name = f"{'Mrs.' if pronoun == 'she' else 'Mr.'} {slots['surname']}"
        the = f"the {kind}"
    return {"": name, ".kind": kind, ".the": the, ".hand": hand, ".hands": plural(hand), **_PRONOUNS[pronoun]}


def _pet(slots: Slots) -> Entry:
    kind = slots["petkind"]
    pronoun = "she" if slots.chance(0.5) else "he"
    return {"": slots["beastname"], ".kind": kind, ".the": f"the {kind}", **_PRONOUNS[pronoun]}


_CHARACTERS: dict[str, Callable[[Slots], Entry]] = {
    "hero": _hero,
    "friend": _companion,
    "rival": _companion,
    "elder": _elder,
    "neighbor": _neighbor,
    "pet": _pet,
}
