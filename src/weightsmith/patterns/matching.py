"""All ways through a pattern at once: sets of places in a program, followed character by character."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weightsmith.patterns.syntax import (
    Alternative,
    Anchor,
    Character,
    Concatenation,
    Look,
    Node,
    PatternError,
    Repeat,
    parse,
)

_MOST_INSTRUCTIONS = 1_000_000
_MOST_KEPT = 3_000_000
_LONGEST_TEXT = 10_000
_ANY = re.compile(".", re.DOTALL)


class Allowance:
    """Steps that may be taken: some at first, and more with every character of the texts that are matched.

    A step is the test of a place for a character, about a third of a microsecond.
    """

    def __init__(self, steps: int = 5_000_000, per_character: int = 64) -> None:
        self._left = steps
        self._per_character = per_character

    def grow(self, characters: int) -> None:
        """Another text of so many characters is begun."""
        self._left += self._per_character * characters

    def spend(self, steps: int) -> None:
        """Take steps; raises PatternError where there are no more."""
        self._left -= steps
        if self._left < 0:
            raise PatternError("it takes too long to match")


@dataclass(frozen=True, slots=True)
class _Consume:
    """Go to the next place behind a character that `test` matches."""

    test: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Split:
    """Go to all of some places."""

    to: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Check:
    """Go to the next place if a condition holds here."""

    anchor: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Peek:
    """Go to `to` if the program behind this place matches from here, or up to here, or if it does not."""

    to: int
    is_negative: bool
    width: int | None


@dataclass(frozen=True, slots=True)
class _Accept:
    """The text matches the pattern with this number."""

    number: int


_Instruction = _Consume | _Split | _Check | _Peek | _Accept


class _Writer:
    """Puts syntax trees into instructions; a repeat with numbers is written out."""

    def __init__(self) -> None:
        self.program: list[_Instruction] = []

    def write(self, node: Node) -> None:
        """Append the instructions of a node."""
        if isinstance(node, Character):
            self.program.append(_Consume(node.test))
        elif isinstance(node, Anchor):
            self.program.append(_Check(node.test))
        elif isinstance(node, Look):
            at = self.reserved()
            self.write(node.inner)
            self.program.append(_Accept(0))
            self.program[at] = _Peek(len(self.program), node.is_negative, node.width)
        elif isinstance(node, Concatenation):
            for part in node.parts:
                self.write(part)
        elif isinstance(node, Alternative):
            self._choice(node)
        else:
            self._repeat(node)

    def write_first_of(self, patterns: Sequence[tuple[Node, ...]], behind: Node) -> None:
        """Append patterns of which each accepts with its number behind `behind`.

        What several begin with is written once, so that a thousand names of modules are no thousand ways.
        """
        left = [(self.reserved(), 0, list(enumerate(patterns)))]
        while left:
            at, shared, members = left.pop()
            groups: dict[Node | None, list[tuple[int, tuple[Node, ...]]]] = {}
            for number, parts in members:
                first = parts[shared] if shared < len(parts) else None
                groups.setdefault(first, []).append((number, parts))
            starts: list[int] = []
            for first, group in groups.items():
                starts.append(len(self.program))
                if first is not None and len(group) > 1:
                    self.write(first)
                    left.append((self.reserved(), shared + 1, group))
                    continue
                # Of patterns that are alike the first is asked first.
                number, parts = group[0]
                for part in (*parts[shared:], behind):
                    self.write(part)
                self.program.append(_Accept(number))
            self.program[at] = _Split(tuple(starts))

    def _choice(self, node: Alternative) -> None:
        at = self.reserved()
        starts: list[int] = []
        ends: list[int] = []
        for option in node.options:
            starts.append(len(self.program))
            self.write(option)
            ends.append(self.reserved())
        self.program[at] = _Split(tuple(starts))
        for end in ends:
            self.program[end] = _Split((len(self.program),))

    def _repeat(self, node: Repeat) -> None:
        for _ in range(node.least):
            self.write(node.inner)
        if node.most is None:
            at = self.reserved()
            self.write(node.inner)
            self.program.append(_Split((at,)))
            self.program[at] = _Split((at + 1, len(self.program)))
            return
        skips: list[int] = []
        for _ in range(node.most - node.least):
            skips.append(self.reserved())
            self.write(node.inner)
        for skip in skips:
            self.program[skip] = _Split((skip + 1, len(self.program)))

    def reserved(self) -> int:
        """The place of an instruction that is written later."""
        self.program.append(_Split(()))
        return len(self.program) - 1


def _size(node: Node) -> int:
    """At least as many as the instructions that a node is written in."""
    if isinstance(node, Concatenation):
        return 1 + sum(map(_size, node.parts))
    if isinstance(node, Alternative):
        return 1 + sum(1 + _size(option) for option in node.options)
    if isinstance(node, Repeat):
        return 2 + max(node.least + 1, node.most or 0) * (1 + _size(node.inner))
    return 2 + _size(node.inner) if isinstance(node, Look) else 1


def _parts(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Concatenation) else (node,)


@dataclass(slots=True)
class _State:
    """What may come next: places that wait for a character, and the first pattern that the text matches as it is."""

    waiting: tuple[int, ...]
    accepts: int | None
    following: dict[str, _Node] = field(default_factory=dict)


@dataclass(slots=True)
class _Branch:
    """A condition that decides how it goes on from some places, those before it having been decided."""

    condition: int
    places: frozenset[int]
    decided: Mapping[int, bool]
    after: dict[bool, _Node] = field(default_factory=dict)


_Node = _State | _Branch


class Patterns:
    """Patterns that are matched together, in the order in which they are asked, each between `before` and `behind`.

    `allowance` bounds the work for all texts together; by default it grows with them. Raises PatternError, from
    `at_beginning` and `found` too where they would take too long.
    """

    def __init__(
        self,
        texts: Sequence[str],
        allowance: Allowance | None = None,
        *,
        before: str = "",
        behind: str = "",
    ) -> None:
        self._allowance = allowance or Allowance()
        writer = _Writer()
        writer.write(parse(before))
        parsed = [parse(text) for text in texts]
        if sum(map(_size, parsed)) > _MOST_INSTRUCTIONS:
            raise PatternError(
                f"with repeats written out it has more than {_MOST_INSTRUCTIONS} characters"
            )
        writer.write_first_of([_parts(node) for node in parsed], parse(behind))
        # Whatever is found anywhere is found behind any characters.
        self._anywhere = len(writer.program)
        writer.program.append(_Split((0, self._anywhere + 1)))
        writer.program += [_Consume(_ANY), _Split((self._anywhere,))]
        self._program = writer.program
        self._known: dict[frozenset[int], _Node] = {}
        self._kept = 0

    def at_beginning(self, text: str) -> int | None:
        """The number of the first pattern that the beginning of a text matches, as `re.match` has it, or None."""
        return self._asked(0, text)

    def found(self, text: str) -> int | None:
        """The number of the first pattern that is found in a text, as `re.search` has it, or None."""
        return self._asked(self._anywhere, text)

    def _asked(self, place: int, text: str) -> int | None:
        if len(text) > _LONGEST_TEXT:
            raise PatternError(f"it is asked about a name of {len(text)} characters")
        self._allowance.grow(len(text) + 1)
        return self._first(place, text, 0, None, {})

    def _first(
        self, place: int, text: str, at: int, end: int | None, peeked: dict[tuple[int, int], bool]
    ) -> int | None:
        """The first pattern that the program from a place on finds from `at` on, ending at `end` if that is given."""
        stop = len(text) if end is None else end
        self._allowance.spend(stop - at + 1)
        first: int | None = None
        node = self._node(frozenset((place,)))
        while True:
            while isinstance(node, _Branch):
                holds = self._holds(node.condition, text, at, peeked)
                node = node.after.get(holds) or self._decided(node, holds)
            if node.accepts is not None and (end is None or at == end):
                first = node.accepts if first is None else min(first, node.accepts)
            if first == 0 or at == stop or not node.waiting:
                return first
            node = node.following.get(text[at]) or self._followed(node, text[at])
            at += 1

    def _holds(self, place: int, text: str, at: int, peeked: dict[tuple[int, int], bool]) -> bool:
        self._allowance.spend(1)
        condition = self._program[place]
        if isinstance(condition, _Check):
            return condition.anchor.match(text, at) is not None
        assert isinstance(condition, _Peek)
        if (place, at) not in peeked:
            if condition.width is None:
                found = self._first(place + 1, text, at, None, peeked)
            else:
                start = at - condition.width
                found = self._first(place + 1, text, start, at, peeked) if start >= 0 else None
            peeked[place, at] = (found is None) is condition.is_negative
        return peeked[place, at]

    def _node(self, places: frozenset[int]) -> _Node:
        found = self._known.get(places)
        if found is None:
            found = self._spread(places, {})
            self._kept += len(places) + 1
            if self._kept > _MOST_KEPT:
                self._known.clear()
                self._kept = 0
            self._known[places] = found
        return found

    def _decided(self, branch: _Branch, holds: bool) -> _Node:
        decided = {**branch.decided, branch.condition: holds}
        found = self._spread(branch.places, decided)
        branch.after[holds] = found
        return found

    def _followed(self, state: _State, character: str) -> _Node:
        self._allowance.spend(len(state.waiting))
        after: list[int] = []
        for place in state.waiting:
            instruction = self._program[place]
            assert isinstance(instruction, _Consume)
            if instruction.test.match(character):
                after.append(place + 1)
        found = self._node(frozenset(after))
        state.following[character] = found
        return found

    def _spread(self, places: frozenset[int], decided: Mapping[int, bool]) -> _Node:
        """Where one comes from some places without a character, or the first condition that is not decided."""
        seen: set[int] = set()
        left = list(places)
        waiting: list[int] = []
        accepts: int | None = None
        while left:
            place = left.pop()
            if place in seen:
                continue
            seen.add(place)
            instruction = self._program[place]
            if isinstance(instruction, _Split):
                left += instruction.to
            elif isinstance(instruction, _Consume):
                waiting.append(place)
            elif isinstance(instruction, _Accept):
                number = instruction.number
                accepts = number if accepts is None else min(accepts, number)
            elif place not in decided:
                self._allowance.spend(len(seen))
                return _Branch(place, places, decided)
            elif decided[place]:
                left.append(instruction.to if isinstance(instruction, _Peek) else place + 1)
        self._allowance.spend(len(seen))
        return _State(tuple(waiting), accepts)
