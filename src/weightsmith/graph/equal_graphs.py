"""One object for all graphs that are built alike, and what follows from a graph alone, worked out once for each.

A family has thousands of tensors and few different graphs. Tracing gives every tensor nodes of its own;
`shared_graph` puts those of an earlier, equal graph in their place, so that walks over them are remembered.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weightsmith.graph.graph import Node, Value, walk

# Graphs and walks that are remembered: a few kinds of tensors, and the rounds that those in progress are in.
_GRAPHS, _WALKS = 64, 256


class _Graph:
    """A graph that compares by what it computes: operations, attributes to the last bit, and which nodes are one."""

    __slots__ = ("_entries", "_hash", "order")

    def __init__(self, order: list[Node]) -> None:
        self.order = order
        place = {node: i for i, node in enumerate(order)}
        self._entries = tuple([_entry(node, place) for node in order])
        self._hash = hash(self._entries)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Graph) and self._entries == other._entries


def _entry(node: Node, place: Mapping[Node, int]) -> tuple[Any, ...]:
    inputs = tuple([place[i] for i in node.inputs])
    attributes = _exact(node.attributes) if node.attributes else ()
    kind: Any = node.__class__
    if kind is Value and isinstance(node, Value):
        return (kind, node.op, inputs, attributes, node.is_mask)
    own = [getattr(node, slot) for slot in _own_slots(kind)]
    # What a node knows of others beyond its inputs served to build the graph.
    return (kind, node.op, inputs, attributes, *[_exact(o) for o in own if not isinstance(o, Node)])


@functools.cache
def _own_slots(kind: Any) -> tuple[str, ...]:
    """The slots that a class of nodes adds to those of all nodes."""
    parents = kind.__mro__[: kind.__mro__.index(Node)]
    return tuple(slot for parent in parents for slot in parent.__slots__)


def _exact(thing: Any) -> Any:
    """A key that is equal for equal things only: 0.0 and -0.0 differ, so do 1 and True, and every field counts."""
    if isinstance(thing, (float, np.floating)):
        return (type(thing), float(thing).hex())
    if isinstance(thing, tuple):
        return (type(thing), *map(_exact, thing))
    if isinstance(thing, frozenset):
        return (type(thing), frozenset(map(_exact, thing)))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        if not type(thing).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError("what can change cannot stand for what was equal to it once")
        fields = [_exact(getattr(thing, field.name)) for field in dataclasses.fields(thing)]
        return (type(thing), *fields)
    return (type(thing), thing)


@functools.lru_cache(maxsize=_GRAPHS)
def _first(graph: _Graph) -> _Graph:
    return graph


def shared_graph(root: Node) -> dict[Node, Node]:
    """For every node of a graph its twin in the first graph that is built alike.

    A graph with attributes that cannot be compared is its own.
    """
    order = walk([root])
    try:
        twins = _first(_Graph(order)).order
    except TypeError:
        twins = order
    return dict(zip(order, twins, strict=True))


@functools.lru_cache(maxsize=_WALKS)
def _walked(roots: tuple[Node, ...], known: frozenset[Node]) -> tuple[Node, ...]:
    return tuple(walk(roots, known))


def walked(roots: Iterable[Node], known: Iterable[Node] = ()) -> tuple[Node, ...]:
    """As `walk`, remembered."""
    return _walked(tuple(roots), frozenset(known))


def substitute(
    roots: Sequence[Node], old: Value, new: Value
) -> tuple[tuple[Node, ...], dict[Node, Node]]:
    """Graphs with one value replaced, and what became of each node; parts that do not depend on it stay the same."""
    memo: dict[Node, Node] = {old: new}
    for node in walk(roots):
        if node not in memo:
            inputs = tuple(memo.get(child, child) for child in node.inputs)
            memo[node] = node if inputs == node.inputs else node.with_inputs(inputs)
    return tuple(memo[root] for root in roots), memo
