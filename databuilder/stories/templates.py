"""The template language, compiled once and expanded many times.

- `{slot}`: a character (`{hero}`, `{hero.he}`), a thing of the plot's cast (`{thing}`, `{thing.s}`), or else a fresh
  word of a category (`{color}`). A capital (`{Hero.he}`) capitalises what comes out.
- `[one|two|]`: one of the alternatives, which may be empty and may hold anything a template may.
- `<rule>`, `<rule hero>`: one line of a shared rule of `plots/common.txt`, with `@` standing for the argument.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Rules = dict[str, list[str]]  # name → its alternative lines, as written

_TOKEN = re.compile(r"\{[^{}]+\}|<[^<>]+>|[\[\]|]|[^\[\]|{}<>]+|.")


@dataclass(frozen=True, slots=True)
class Choice:
    """A point where one of several sequences is taken."""

    options: tuple["Sequence", ...]


Node: TypeAlias = str | Choice
Sequence: TypeAlias = tuple[Node, ...]


class Compiler:
    """Turns template text into sequences of plain text (with `%(slot)s` marks) and choices."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._compiled: dict[str, Choice] = {}

    def compile(self, text: str) -> Sequence:
        """Compile one template. Raises `ValueError` for unbalanced brackets or an unknown rule."""
        tokens = _TOKEN.findall(text)[::-1]
        options = self._options(tokens, text)
        if tokens or len(options) != 1:
            raise ValueError(f"stories: stray ']' or '|' in the template {text!r}")
        return options[0]

    def _options(self, tokens: list[str], text: str) -> list[Sequence]:
        """Read alternatives up to the closing bracket, which is left on the stack of tokens."""
        options: list[list[Node]] = [[]]
        while tokens and tokens[-1] != "]":
            token = tokens.pop()
            if token == "|":
                options.append([])
            elif token == "[":
                options[-1].append(Choice(tuple(self._options(tokens, text))))
                if not tokens:
                    raise ValueError(f"stories: a '[' is not closed in the template {text!r}")
                tokens.pop()
            elif token[0] == "<" and len(token) > 2:
                options[-1].append(self._rule(token[1:-1]))
            elif token in "{}<>" or "%" in token:
                raise ValueError(f"stories: stray {token!r} in the template {text!r}")
            else:
                options[-1].append(f"%({token[1:-1]})s" if token[0] == "{" else token)
        return [_merged(option) for option in options]

    def _rule(self, reference: str) -> Choice:
        if reference not in self._compiled:
            name, _, argument = reference.partition(" ")
            if name not in self._rules:
                raise ValueError(f"stories: there is no rule <{name}>; known: {', '.join(sorted(self._rules))}")
            lines = [_applied(line, argument) for line in self._rules[name]]
            self._compiled[reference] = Choice(tuple(self.compile(line) for line in lines))
        return self._compiled[reference]


def draw_index(random: Callable[[], float], size: int) -> int:
    """Draw an index below `size`, earlier ones more often: the first of ten comes three times in ten.

    Words and phrases of a language are never equally frequent (Zipf 1949). The square of a uniform number is
    exact in any version of Python and any C library.
    """
    uniform = random()
    return int(uniform * uniform * size)


def expand(sequence: Sequence, random: Callable[[], float], out: list[str]) -> None:
    """Append the texts of `sequence` to `out`, taking one option at each choice."""
    for node in sequence:
        if node.__class__ is str:
            out.append(node)  # pyright: ignore[reportArgumentType]
        else:
            options = node.options  # pyright: ignore[reportAttributeAccessIssue]
            expand(options[draw_index(random, len(options))], random, out)


def _applied(line: str, argument: str) -> str:
    """Put the argument for `@`: in `<rule @>` and `{@.he}` as it is, elsewhere as the slot `{argument}`."""
    line = re.sub(r"(<\w+ |\{)@", rf"\g<1>{argument}", line)
    return line.replace("@", f"{{{argument}}}")


def _merged(nodes: list[Node]) -> Sequence:
    """Join neighbouring texts, so that there is less to do at expansion."""
    merged: list[Node] = []
    for node in nodes:
        if isinstance(node, str) and merged and isinstance(merged[-1], str):
            merged[-1] += node
        else:
            merged.append(node)
    return tuple(merged)
