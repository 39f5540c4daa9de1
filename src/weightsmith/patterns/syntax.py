"""The syntax of Python's regular expressions, as far as it says which texts match."""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass

_MOST_CHARACTERS = 100_000
_MOST_DEPTH = 40
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(,(\d*))?\}|\{,(\d*)\}")
_ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|[0-3][0-7]{2}|.)",
    re.DOTALL,
)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_ANCHORS = frozenset("AbBZz")
_NAMED = re.compile(r"\(\?P<\w+>")
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_LOOK = re.compile(r"\(\?(<?)([=!])")
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_FLAG = {
    "a": re.ASCII,
    "i": re.IGNORECASE,
    "m": re.MULTILINE,
    "s": re.DOTALL,
    "u": re.UNICODE,
}


class PatternError(ValueError):
    """A text is no regular expression, or none that is matched in bounded time; begins in lower case."""


@dataclass(frozen=True, slots=True)
class Character:
    """One character that `test` matches."""

    test: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Anchor:
    r"""A place where `test` matches without a character: `^`, `$`, `\b`."""

    test: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Look:
    """`(?=...)` and its kin; `width` is the number of characters that one that looks behind matches, else None."""

    inner: Node
    is_negative: bool
    width: int | None


@dataclass(frozen=True, slots=True)
class Concatenation:
    """One after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """At least `least` times and, unless `most` is None, at most so often."""

    inner: Node
    least: int
    most: int | None


Node = Character | Anchor | Look | Concatenation | Alternative | Repeat


def parse(text: str) -> Node:
    """The meaning of a regular expression; raises PatternError."""
    if len(text) > _MOST_CHARACTERS:
        raise PatternError(f"it has more than {_MOST_CHARACTERS} characters")
    if _depth(text) > _MOST_DEPTH:
        raise PatternError(f"it is nested more than {_MOST_DEPTH} deep")
    try:
        compiled = _compiled(text, re.RegexFlag(0))
    except (re.error, OverflowError, RecursionError) as problem:
        raise PatternError(f"it is malformed: {problem}") from None
    # Flags in front of the whole hold for every part of it.
    return _Parser(text).whole(re.RegexFlag(compiled.flags) & ~re.UNICODE)


def _depth(text: str) -> int:
    """How deep parentheses are nested, at most, as far as the text is well formed."""
    depth = deepest = at = 0
    while at < len(text):
        character = text[at]
        if character == "[":
            found = _CLASS.match(text, at)
            if found is None:
                break
            at = found.end()
            continue
        if character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")":
            depth -= 1
        at += 2 if character == "\\" else 1
    return deepest


def _compiled(text: str, flags: re.RegexFlag) -> re.Pattern[str]:
    # Python warns of sets that a later version may read otherwise; it reads them as it does.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(text, flags)


@functools.lru_cache(maxsize=4096)
def _piece(text: str, flags: re.RegexFlag) -> re.Pattern[str]:
    """One character or anchor, of which patterns have few different ones."""
    return _compiled(text, flags)


class _Parser:
    """Reads a text that Python's `re` has accepted; a single character or anchor is left to `re` as it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self, flags: re.RegexFlag) -> Node:
        return self._choice(flags)

    def _choice(self, flags: re.RegexFlag) -> Node:
        options = [self._sequence(flags)]
        while self._text.startswith("|", self._at):
            self._at += 1
            options.append(self._sequence(flags))
        return options[0] if len(options) == 1 else Alternative(tuple(options))

    def _sequence(self, flags: re.RegexFlag) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._atom(flags)
            if part is not None:
                parts.append(self._repeated(part))
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _repeated(self, part: Node) -> Node:
        while (comment := _COMMENT.match(self._text, self._at)) is not None:
            self._at = comment.end()
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None:
            return part
        self._at = found.end()
        follower = self._text[self._at : self._at + 1]
        if follower == "+":
            raise PatternError("it has a repeat that gives nothing back (`+` behind a repeat)")
        self._at += follower == "?"
        return Repeat(part, *_bounds(found))

    def _atom(self, flags: re.RegexFlag) -> Node | None:
        character = self._text[self._at]
        if character == "(":
            return self._group(flags)
        if character in "^$":
            return Anchor(_piece(self._taken(1), flags))
        if character == "\\":
            return self._escape(flags)
        if character == "[":
            found = _CLASS.match(self._text, self._at)
            assert found is not None
            return Character(_piece(self._taken(len(found[0])), flags))
        text = self._taken(1)
        return Character(_piece("." if text == "." else re.escape(text), flags))

    def _escape(self, flags: re.RegexFlag) -> Node:
        found = _ESCAPE.match(self._text, self._at)
        assert found is not None
        text = self._taken(len(found[0]))
        if text[1] in _ANCHORS:
            return Anchor(_piece(text, flags))
        if text[1] in "123456789" and len(text) < 4:
            raise PatternError("it refers back to a group")
        return Character(_piece(text, flags))

    def _group(self, flags: re.RegexFlag) -> Node | None:
        if not self._text.startswith("(?", self._at):
            return self._inside(1, flags)
        comment = _COMMENT.match(self._text, self._at)
        if comment is not None:
            self._at = comment.end()
            return None
        look = _LOOK.match(self._text, self._at)
        if look is not None:
            inner = self._inside(len(look[0]), flags)
            return Look(inner, look[2] == "!", _width(inner) if look[1] else None)
        named = _NAMED.match(self._text, self._at)
        if named is not None:
            return self._inside(len(named[0]), flags)
        flagged = _FLAGS.match(self._text, self._at)
        if flagged is None:
            raise PatternError("it has a condition on a group, a back-reference or an atomic group")
        own = _changed(flags, flagged[1], flagged[2] or "")
        if flagged[3] == ":":
            return self._inside(len(flagged[0]), own)
        self._at = flagged.end()
        return None

    def _inside(self, opening: int, flags: re.RegexFlag) -> Node:
        self._at += opening
        inner = self._choice(flags)
        self._at += 1
        return inner

    def _taken(self, count: int) -> str:
        text = self._text[self._at : self._at + count]
        self._at += count
        return text


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if found[0] in simple:
        return simple[found[0]]
    if found[1] is None:
        return 0, int(found[4]) if found[4] else None
    least = int(found[1])
    if found[2] is None:
        return least, least
    return least, int(found[3]) if found[3] else None


def _changed(flags: re.RegexFlag, on: str, off: str) -> re.RegexFlag:
    strange = next((letter for letter in on + off if letter not in _FLAG), None)
    if strange is not None:
        raise PatternError(f"it has the flag {strange!r}")
    for letter in on:
        if letter in "au":
            flags &= ~re.ASCII
        flags |= _FLAG[letter] & ~re.UNICODE
    for letter in off:
        flags &= ~_FLAG[letter]
    return flags


def _width(node: Node) -> int:
    """The characters that a node matches, which `re` has checked to be always equally many."""
    if isinstance(node, Character):
        return 1
    if isinstance(node, Concatenation):
        return sum(map(_width, node.parts))
    if isinstance(node, Alternative):
        return _width(node.options[0])
    if isinstance(node, Repeat):
        return node.least * _width(node.inner)
    return 0
