"""Graphs that are built alike are one object, and no others are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from weightsmith.graph import graph
from weightsmith.graph.equal_graphs import shared_graph, walked
from weightsmith.graph.graph import Scope, Value, source, walk, whole
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.passes import reduction_levels, used_sources
from weightsmith.graph.site import Site
from weightsmith.methods.parts.modifiers import Displaced
from weightsmith.tensors.place import Place


@dataclass(frozen=True, slots=True)
class Times:
    factor: float

    def __call__(self, number: Any) -> Any:
        return self.factor * number


def merged(**changes: Any) -> Value:
    facts: dict[str, Any] = {
        "weight": 0.5,
        "factor": 2.0,
        "operation": operator.add,
        "scope": Scope.TENSOR,
        "seed": 1,
        "index": 1,
        "counts": True,
        "name": "a",
    } | changes
    delta = source(facts["index"]) - source(0)
    delta = Displaced(delta, source(0), delta)
    size = graph.apply(Times(facts["factor"]), graph.dot(delta, delta, facts["scope"]))
    layer = graph.dot(
        delta, delta, ModelStatistic("m", facts["name"], layer=("s", 1), counts=facts["counts"])
    )
    kept = graph.uniform((facts["seed"], 2)) < 0.5
    changed: Value = facts["operation"](
        delta * size, graph.where(kept, delta * facts["weight"], 0.0)
    )
    return source(0) + changed * layer


def twin(root: Value) -> Any:
    return shared_graph(root)[root]


def test_graphs_that_are_built_alike_are_one_object() -> None:
    first, second = merged(), merged()
    twins = shared_graph(second)
    assert twins[second] is twin(first)
    assert list(twins) == walk([second])
    assert list(twins.values()) == walk([twin(first)])


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0.25},
        {"factor": 3.0},
        {"operation": operator.sub},
        {"scope": Scope.ROW},
        {"scope": ModelStatistic("m", "a")},
        {"seed": 2},
        {"index": 2},
        {"counts": False},
        {"name": "b"},
    ],
)
def test_any_difference_makes_another_graph(change: dict[str, Any]) -> None:
    assert twin(merged(**change)) is not twin(merged())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: source(0) / 0.0, lambda: source(0) / -0.0),
        (
            lambda: source(0) * graph.apply(Times(0.0), 1.0),
            lambda: source(0) * graph.apply(Times(-0.0), 1.0),
        ),
        (lambda: source(0) + source(0), lambda: shared_source()),
    ],
)
def test_zeros_of_two_signs_and_nodes_used_twice_are_told_apart(
    one: Callable[[], Value], other: Callable[[], Value]
) -> None:
    assert twin(one()) is not twin(other())


def shared_source() -> Value:
    only = source(0)
    return only + only


def test_a_graph_with_attributes_that_cannot_be_compared_is_its_own() -> None:
    root = graph.whole(lambda _, x, __: x, source(0), attributes=([1, 2],))
    assert shared_graph(root) == {node: node for node in walk([root])}


def test_what_is_remembered_of_a_graph_depends_on_what_is_known() -> None:
    x = source(0)
    mean = graph.total(x)
    spread = graph.total((x - mean) * (x - mean))
    root = source(1) * spread
    assert reduction_levels([root]) == ((mean,), (spread,))
    assert reduction_levels([root], {mean: 1.0}) == ((spread,),)
    assert reduction_levels([root], {mean: 2.0, spread: 1.0}) == ()
    assert used_sources([root], {}) == {0, 1}
    assert used_sources([root], {spread: 1.0}) == {1}
    assert list(walked([root], {spread: 1.0})) == walk([root], {spread: 1.0})


def test_a_site_of_another_layer_makes_another_statistic() -> None:
    def at(layer: int) -> Value:
        site = Site(Place("x", stack="s", layer=layer), (4,))
        return source(0) * graph.dot(source(0), source(0), site.over_layer(1, "norm"))

    assert twin(at(1)) is twin(at(1))
    assert twin(at(0)) is not twin(at(1))


@dataclass
class Changeable:
    """A number that may be changed between two uses."""

    factor: float


@dataclass(frozen=True)
class Holder:
    """Any attribute of a function of matrices."""

    held: Any

    def __call__(self, linalg: Any, array: Any) -> Any:
        return array


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.float32(0.0), np.float32(-0.0)),
        (frozenset([1]), frozenset([1.0])),
        (Changeable(1.0), Changeable(1.0)),
        (-1, -2),  # of one hash
    ],
)
def test_attributes_that_only_look_equal_make_graphs_of_their_own(one: Any, other: Any) -> None:
    graphs = [whole(Holder(given), source(0)) for given in (one, other)]
    first, second = (shared_graph(made)[made] for made in graphs)
    assert first is not second
