"""Who is in a story: the scene, its characters and its things, drawn when they are first named.

Forms of a character: `{hero}` the name, `.he .him .his .himself`, `.kind` ("girl", "fox", "baker"), `.trait`
("brave"), `.the` ("the girl", "the little fox"), `.hand .hands` ("paw", "paws"), `.home` ("house", "den"). An elder
has `.kin` ("grandma") and no kind, trait or home; neither has a neighbor, who has `.intro` ("Mrs. Finch the baker")
for the first time that the story names them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from databuilder.stories.lexicon import Entry, load_lexicon, resolve
from databuilder.stories.templates import draw_index

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

    def __init__(self, random: Callable[[], float], scene: Scene, cast: dict[str, str]) -> None:
        super().__init__()
        self._lexicon = load_lexicon()
        self._random = random
        self._kind = scene.kind
        self._tags = (scene.world, scene.kind)
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
        category = resolve(role, self._tags)
        text = self._lexicon.forms[category + dot + form][self._index(category)]
        return text % self if "%(" in text else text

    def draw(self, category: str) -> Entry:
        """Draw an entry of a category with all its forms."""
        category = resolve(category, self._tags)
        return self._lexicon.entries[category][self._index(category)]

    def chance(self, share: float) -> bool:
        """Be true in `share` of the cases."""
        return self._random() < share

    @property
    def kind(self) -> str:
        """The kind of the hero."""
        return self._kind

    def _bind(self, role: str, entry: Entry) -> None:
        for form, text in entry.items():
            self[role + form] = text % self if "%(" in text else text

    def _index(self, category: str) -> int:
        size = len(self._lexicon.entries[category])
        used = self._used.setdefault(category, set())
        if 2 * len(used) >= size:
            used.clear()
        index = draw_index(self._random, size)
        while index in used:
            index = draw_index(self._random, size)
        used.add(index)
        return index


def _hero(slots: Slots) -> Entry:
    return _peer(slots, "she" if slots.chance(0.5) else "he", slots.kind)


def _companion(slots: Slots) -> Entry:
    hero_is = slots["hero.he"]
    other = "he" if hero_is == "she" else "she"
    kind = "child" if slots.kind == "grownup" else slots.kind
    pronoun = other if slots.chance(_OTHER_SEX_SHARE) else hero_is
    companion = _peer(slots, pronoun, kind)
    if kind == slots.kind == "child":
        companion[".the"] = companion[""]  # "the girl" is the hero
    return companion


def _peer(slots: Slots, pronoun: str, kind: str) -> Entry:
    """Make a character of the hero's sort: a child, a young animal, or a grown-up with a job."""
    trait = slots["trait"]
    if kind == "beast":
        beast = slots.draw("beast")
        body = {**beast, ".kind": beast[""], ".the": f"the little {beast['']}"}
        name = slots["beastname"]
    else:
        noun = slots["job"] if kind == "grownup" else {"she": "girl", "he": "boy"}[pronoun]
        body = {".kind": noun, ".the": f"the {noun}", ".hand": "hand", ".hands": "hands", ".home": "house"}
        name = slots["girlname" if pronoun == "she" else "boyname"]
    return {**body, "": name, ".trait": trait, **_PRONOUNS[pronoun]}


def _elder(slots: Slots) -> Entry:
    """Make a grown-up of the hero's family; the next one has another place in it."""
    pronoun = "she" if slots.chance(0.5) else "he"
    kin = slots["kinshe" if pronoun == "she" else "kinhe"]
    name = kin.capitalize()
    if slots.kind == "beast":
        name = f"{name} {slots['hero.adult'].title()}"
    elif kin in ("aunt", "uncle"):
        name = f"{name} {slots['girlname' if pronoun == 'she' else 'boyname']}"
    return {
        "": name,
        ".kin": kin,
        ".the": f"{slots['hero.his']} {kin}",
        **_hands(slots),
        **_PRONOUNS[pronoun],
    }


def _hands(slots: Slots) -> Entry:
    return {form: slots[f"hero{form}"] for form in (".hand", ".hands")}


def _neighbor(slots: Slots) -> Entry:
    """Make a grown-up from next door: an old animal, or somebody with a job."""
    pronoun = "she" if slots.chance(0.5) else "he"
    if slots.kind == "beast":
        beast = slots.draw("beast")
        name = intro = f"Old {beast['.adult'].title()}"
        body = {form: beast[form] for form in (".hand", ".hands")}
    else:
        name = f"{'Mrs.' if pronoun == 'she' else 'Mr.'} {slots['surname']}"
        intro = f"{name} the {slots['job']}"
        body = {".hand": "hand", ".hands": "hands"}
    return {"": name, ".intro": intro, ".the": name, **body, **_PRONOUNS[pronoun]}


def _pet(slots: Slots) -> Entry:
    kind = slots["petkind"]
    pronoun = "she" if slots.chance(0.5) else "he"
    return {"": slots["beastname"], ".kind": kind, ".the": f"the {kind}", **_PRONOUNS[pronoun]}


_CHARACTERS: dict[str, Callable[[Slots], Entry]] = {
    "hero": _hero,
    "friend": _companion,
    "rival": _companion,
    "elder": _elder,
    "guest": _elder,
    "neighbor": _neighbor,
    "pet": _pet,
}
