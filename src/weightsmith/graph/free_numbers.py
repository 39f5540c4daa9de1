"""Free numbers: parameters of a graph that get their values when it is evaluated.

`free(number)` is the node of a `FreeNumber`. Passes take its value as one of the numbers that are known before them, so
a graph is built and compiled once and run for any values.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.graph.graph import Node, Scalar, Scope, walk
from weightsmith.graph.passes import evaluate_scalar
from weightsmith.graph.unknown import NumberNotKnown


@dataclass(frozen=True, slots=True)
class FreeNumber:
    """A number by its name, with the interval [low, high] that it lies in and the value that it starts from."""

    name: str
    low: float
    high: float
    start: float


@functools.lru_cache(maxsize=1 << 16)
def free(number: FreeNumber) -> Scalar:
    """The node of a free number, one for all graphs."""
    return Scalar("free", (), (number,), scope=Scope.FREE)


def free_in(roots: Iterable[Node]) -> dict[Node, FreeNumber]:
    """The free numbers that graphs depend on, by their nodes, in the order of the graph."""
    return {node: node.attributes[0] for node in walk(roots) if node.op == "free"}


def valued(scalar: Scalar, values: Mapping[str, Any]) -> Any:
    """What arithmetic on free numbers gives for their values: floats, or torch scalars."""
    known = {node: values[number.name] for node, number in free_in([scalar]).items()}
    return evaluate_scalar(scalar, dict(known))


class ValuedPath:
    """Answers for free numbers by their values, or where they start, and notes what it said; see `unknown.Path`.

    With values `nearby`, numbers that are equal are compared there: what is built is right on one side of the values.
    """

    def __init__(
        self, values: Mapping[str, float], nearby: Mapping[str, float] | None = None
    ) -> None:
        self.values, self._nearby = values, nearby
        self._said: dict[tuple[Callable[[Any, Any], Any], Any, Any], bool] = {}

    def decide(self, comparison: Callable[[Any, Any], Any], number: Any, other: Any) -> bool:
        """Whether a comparison holds for the values."""
        found = _is_said(comparison, number, other, self.values, self._nearby)
        self._said[comparison, number, other] = found
        return found

    def is_same_for(
        self, values: Mapping[str, float], nearby: Mapping[str, float] | None = None
    ) -> bool:
        """Whether everything that was said is so for other values too."""
        said = self._said.items()
        return all(_is_said(*asked, values, nearby) is found for asked, found in said)


def _is_said(
    comparison: Callable[[Any, Any], Any],
    number: Any,
    other: Any,
    values: Mapping[str, float],
    nearby: Mapping[str, float] | None,
) -> bool:
    is_edge = nearby is not None and _holds(operator.eq, number, other, values)
    return _holds(comparison, number, other, nearby if is_edge and nearby else values)


def _holds(
    comparison: Callable[[Any, Any], Any], number: Any, other: Any, values: Mapping[str, float]
) -> bool:
    sides = [n for n in (number, other) if isinstance(n, Scalar)]
    known = {n.name: values.get(n.name, n.start) for n in free_in(sides).values()}
    return bool(
        comparison(*(valued(n, known) if isinstance(n, Scalar) else n for n in (number, other)))
    )


def refuse_hidden(roots: Iterable[Node]) -> None:
    """Raise NumberNotKnown where a free number is no input of a node but inside a function that a node calls."""
    for node in walk(roots):
        hidden = [scalar for attribute in node.attributes for scalar in _scalars_in(attribute)]
        names = frozenset().union(*(scalar.unknown_names() for scalar in hidden))
        if names:
            raise NumberNotKnown(names)


def _scalars_in(thing: Any) -> Iterator[Scalar]:
    if isinstance(thing, Scalar):
        yield thing
    for part in _parts_of(thing):
        yield from _scalars_in(part)


def _parts_of(thing: Any) -> Iterable[Any]:
    if isinstance(thing, (tuple, list, frozenset, set)):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, functools.partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, types.MethodType):
        return (thing.__self__,)
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or ()]
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    return ()
