"""The rules of English that the stories need: inflection of single words, articles and capitals of whole texts."""

import re

_IRREGULAR_PLURALS = {
    "child": "children", "deer": "deer", "fish": "fish", "foot": "feet", "goose": "geese",
    "leaf": "leaves", "hoof": "hooves", "loaf": "loaves", "man": "men", "mouse": "mice",
    "scarf": "scarves", "sheep": "sheep", "shelf": "shelves", "tooth": "teeth", "wolf": "wolves",
    "woman": "women", "calf": "calves", "piano": "pianos", "banjo": "banjos", "yo-yo": "yo-yos",
    "cello": "cellos", "piccolo": "piccolos", "mango": "mangoes", "potato": "potatoes", "tomato": "tomatoes",
    "kangaroo": "kangaroos", "flamingo": "flamingos", "armadillo": "armadillos", "rhino": "rhinos", "hippo": "hippos",
}  # fmt: skip

# Letters mislead: these begin with the other kind of sound than their first letter says.
_VOWEL_SOUND = ("hour", "honest", "honor", "heir")
_CONSONANT_SOUND = ("uni", "use", "usu", "uku", "eu", "one", "once", "ute")

_ARTICLE = re.compile(r"\b([Aa]) (?=([aeiouhAEIOUH][A-Za-z]*))")
_SENTENCE_START = re.compile(r'(?:^|\n|[.!?] "?|\." |, "|: ")[a-z]')


def plural(noun: str) -> str:
    """Return the plural of a noun; of several words the last is inflected ("paper boat" → "paper boats")."""
    rest, _, word = noun.rpartition(" ")
    prefix = f"{rest} " if rest else ""
    if word in _IRREGULAR_PLURALS:
        return prefix + _IRREGULAR_PLURALS[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{prefix}{word}es"
    if re.search(r"[^aeiou]y$", word):
        return f"{prefix}{word[:-1]}ies"
    return f"{prefix}{word}s"


def past(verb: str) -> str:
    """Return the past tense of a regular verb."""
    if verb.endswith("e"):
        return f"{verb}d"
    if re.search(r"[^aeiou]y$", verb):
        return f"{verb[:-1]}ied"
    return f"{_doubled(verb)}ed"


def gerund(verb: str) -> str:
    """Return the -ing form of a regular verb."""
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe")):
        return f"{verb[:-1]}ing"
    return f"{_doubled(verb)}ing"


def comparative(adjective: str, ending: str = "er") -> str:
    """Return the comparative (`ending="er"`) or superlative (`"est"`) of an adjective of one or two syllables."""
    if adjective.endswith("e"):
        return f"{adjective}{ending[1:]}"
    if re.search(r"[^aeiou]y$", adjective):
        return f"{adjective[:-1]}i{ending}"
    return f"{_doubled(adjective)}{ending}"


def takes_an(word: str) -> bool:
    """Say whether the indefinite article before `word` is "an"."""
    word = word.lower()
    if word.startswith(_VOWEL_SOUND):
        return True
    return word[0] in "aeiou" and not word.startswith(_CONSONANT_SOUND)


def polish(text: str) -> str:
    """Set "a" or "an" before each word and begin each sentence and each quotation with a capital.

    A word after `!"` or `?"` is left alone, since an attribution may follow ("Stop!" she cried).
    """
    text = _ARTICLE.sub(_article, text)
    return _SENTENCE_START.sub(_capital_last, text)


def _article(match: re.Match[str]) -> str:
    return f"{match[1]}n " if takes_an(match[2]) else match[0]


def _capital_last(match: re.Match[str]) -> str:
    found = match[0]
    return found[:-1] + found[-1].upper()


def _doubled(word: str) -> str:
    """Double the last consonant of a word of one short syllable: hop → hopp(ed), big → bigg(er)."""
    short = re.fullmatch(r"(?:[^aeiou]*|qu)[aeiouy][^aeiouywx]", word)
    return word + word[-1] if short else word
