"""What a method needs, found by tracing it: nothing of this is declared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weightsmith.graph import (
    Node,
    Scalar,
    Scope,
    Site,
    Statistic,
    Threshold,
    Value,
    reduction_levels,
    source,
    walk,
)
from weightsmith.methods import PAPER, REQUIRED, Base, MethodSpec, ModifierSpec, Parameter
from weightsmith.tensors import Kind, Place

# A matrix in a middle block, so that rules for depth and for rows show.
_SITE = Site(Place("model.layers.1.mlp.up_proj.weight", Kind.MLP_UP, 1, 4), (64, 64))


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """Kind and passes of a method with its defaults.

    The kind says what must be seen at once: `elementwise` a tile, `measured` sums or order statistics
    over a row or tensor first, `model` such over the whole model, `matrix` whole matrices. `cost` is the time for N
    experts and a matrix of m x n numbers: that of the kind, where the method declares no other.
    """

    kind: str
    passes: int
    cost: str


def facts_of(spec: MethodSpec, preset: str = PAPER) -> MethodFacts:
    """Trace a method with two experts (or as many as it takes) and the defaults of a preset."""
    output = _traced(spec, preset)
    kind = _kind(walk([output]))
    usual = "O(N m n min(m, n))" if kind == "matrix" else "O(N m n)"
    return MethodFacts(kind, len(reduction_levels([output])) + 1, spec.cost or usual)


def facts_of_modifier(spec: ModifierSpec) -> MethodFacts:
    """Trace a modifier with three experts and its defaults; passes are those before a method's own."""
    needed = {key: example_of(p) for key, p in spec.parameters.items() if p.default is REQUIRED}
    base = None if spec.base is Base.IGNORED else source(3)
    site = replace(_SITE, statistics=_statistics(spec, 3))
    changed = spec.build(needed).modify(base, [source(i) for i in range(3)], site)
    return MethodFacts(_kind(walk(changed)), len(reduction_levels(list(changed))), "O(N m n)")


def _traced(spec: MethodSpec, preset: str) -> Value:
    least, most = spec.experts
    number = max(least, 2 if most is None else min(2, most))
    needed = {
        key: example_of(spec.parameters[key])
        for key, default in spec.defaults(preset).items()
        if default is REQUIRED
    }
    combine = spec.build(needed, [{} for _ in range(number)], preset=preset, where="methods")
    base = None if spec.base is Base.IGNORED else source(number)
    site = replace(_SITE, statistics=_statistics(spec, number))
    return combine.combine(base, [source(i) for i in range(number)], site)


def _statistics(spec: MethodSpec | ModifierSpec, number: int) -> tuple[Statistic, ...]:
    """One of the kind that the method or modifier prefers for each expert."""
    kind = next((k for k in spec.statistics if k != "metrics"), None)
    if kind is None:
        return ()
    return tuple(Statistic(kind, (source(number + 1 + i),), _SITE.shape) for i in range(number))


def example_of(parameter: Parameter) -> Any:
    """A value for a parameter without a default."""
    if parameter.choices:
        return parameter.choices[0]
    if parameter.kind is not float:
        return parameter.kind(1)
    low = 0.0 if parameter.low is None else parameter.low
    high = low + 1.0 if parameter.high is None else parameter.high
    return (low + high) / 2


def _kind(nodes: list[Node]) -> str:
    if any(node.op == "whole" for node in nodes):
        return "matrix"
    scopes = {node.scope for node in nodes if isinstance(node, (Scalar, Threshold))}
    if Scope.MODEL in scopes:
        return "model"
    is_ranked = any(node.op == "row_rank" for node in nodes)
    return "measured" if is_ranked or scopes - {Scope.LITERAL} else "elementwise"
