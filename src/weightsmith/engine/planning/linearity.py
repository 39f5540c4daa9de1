"""Is what a graph computes a sum of its sources with fixed coefficients?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightsmith.graph import Node, Value, walk
from weightsmith.tensors import DType


@dataclass(frozen=True, slots=True)
class Term:
    """A source by its index, and the dtype that it is rounded to before anything else is done with it."""

    index: int
    rounded_to: DType | None = None


@dataclass(frozen=True, slots=True)
class _Sum:
    """constant + sum_t coefficients[t] t."""

    constant: float = 0.0
    coefficients: Mapping[Term, float] = field(default_factory=dict)

    def plus(self, other: _Sum, times: float = 1.0) -> _Sum:
        found = dict(self.coefficients)
        for term, coefficient in other.coefficients.items():
            found[term] = found.get(term, 0.0) + times * coefficient
        return _Sum(self.constant + times * other.constant, found)

    def times(self, factor: float) -> _Sum:
        found = {term: factor * c for term, c in self.coefficients.items()}
        return _Sum(factor * self.constant, found)


def coefficients(output: Value) -> dict[Term, float] | None:
    """c_t with output = sum_t c_t t, for the sources that are read; None where the graph is no such sum.

    Numbers that are known only after a reduction are no fixed coefficients, whatever their values turn out to be.
    A source that is rounded first is a term of its own; rounding anything else is not linear.
    """
    known: dict[int, _Sum | None] = {}
    for node in walk([output]):
        known[id(node)] = _of(node, [known[id(part)] for part in node.inputs])
    found = known[id(output)]
    if found is None or found.constant != 0.0:
        return None
    return dict(found.coefficients)


def _of(node: Node, parts: list[_Sum | None]) -> _Sum | None:
    if node.op == "source":
        return _Sum(coefficients={Term(node.attributes[0]): 1.0})
    if node.op == "literal":
        return _Sum(float(node.attributes[0]))
    inputs = [part for part in parts if part is not None]
    if not inputs or len(inputs) < len(parts):
        return None
    if node.op == "broadcast":
        return inputs[0]
    if node.op == "round":
        return _rounded(node, inputs[0])
    if node.op == "neg":
        return inputs[0].times(-1.0)
    if node.op in ("add", "sub"):
        return inputs[0].plus(inputs[1], 1.0 if node.op == "add" else -1.0)
    return _product(node.op, inputs)


def _rounded(node: Node, inner: _Sum) -> _Sum | None:
    dtype = node.attributes[0]
    if dtype is DType.FLOAT64:
        return inner
    if node.inputs[0].op != "source":
        return None
    (term,) = inner.coefficients
    return _Sum(coefficients={Term(term.index, dtype): 1.0})


def _product(op: str, inputs: list[_Sum]) -> _Sum | None:
    if op == "mul" and not inputs[1].coefficients:
        return inputs[0].times(inputs[1].constant)
    if op == "mul" and not inputs[0].coefficients:
        return inputs[1].times(inputs[0].constant)
    if op == "div" and not inputs[1].coefficients and inputs[1].constant != 0.0:
        return inputs[0].times(1.0 / inputs[1].constant)
    return None
