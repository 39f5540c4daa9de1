"""Free numbers: parameters of a graph that get their values when it is evaluated.

`free(number)` is the node of a `FreeNumber`. Passes take its value as one of the numbers that are known before them, so
a graph is built and compiled once and run for any values.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
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
