"""Is what a graph computes a sum of its sources with fixed coefficients, or of values with free numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.graph import Node, Number, Scalar, Scope, Value, walk
from weightsmith.tensors import DType


@dataclass(frozen=True, slots=True)
class Term:
    """A source by its index, and the dtype that it is rounded to before anything else is done with it."""

    index: int
    rounded_to: DType | None = None


@dataclass(frozen=True, slots=True)
class _Sum:
    """constant + sum_t coefficients[t] t, over sources or values; numbers may be made of free ones."""

    constant: Number = 0.0
    coefficients: Mapping[Any, Number] = field(default_factory=dict)

    def plus(self, other: _Sum, times: float = 1.0) -> _Sum:
        found = dict(self.coefficients)
        for term, coefficient in other.coefficients.items():
            more = times * coefficient
            found[term] = found[term] + more if term in found else more
        return _Sum(self.constant + times * other.constant, found)

    def times(self, factor: Number) -> _Sum:
        found = {term: factor * c for term, c in self.coefficients.items()}
        # A free number times 0 is a node, and no number that could be seen to be 0.
        is_zero = not isinstance(self.constant, Scalar) and self.constant == 0.0
        return _Sum(0.0 if is_zero else factor * self.constant, found)


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
    return {term: float(c) for term, c in found.coefficients.items()}


def _of(node: Node, parts: list[_Sum | None]) -> _Sum | None:
    if node.op == "source":
        return _Sum(coefficients={Term(node.attributes[0]): 1.0})
    if node.op == "literal":
        return _Sum(float(node.attributes[0]))
    if node.op == "round" and parts[0] is not None:
        return _rounded(node, parts[0])
    return _combined(node.op, parts)


def _combined(op: str, parts: Sequence[_Sum | None]) -> _Sum | None:
    """What an operation makes of sums, if that is one."""
    inputs = [part for part in parts if part is not None]
    if not inputs or len(inputs) < len(parts):
        return None
    if op == "broadcast":
        return inputs[0]
    if op == "neg":
        return inputs[0].times(-1.0)
    if op in ("add", "sub"):
        return inputs[0].plus(inputs[1], 1.0 if op == "add" else -1.0)
    return _product(op, inputs)


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
    if op == "div" and not inputs[1].coefficients:
        divisor = inputs[1].constant
        if isinstance(divisor, Scalar) or divisor != 0.0:
            return inputs[0].times(1.0 / divisor)
    return None


def free_terms(output: Value) -> dict[Value, Scalar] | None:
    """c_v with output = (what is free of free numbers) + sum_v c_v v, the c_v being made of free numbers alone.

    None where the graph is no such sum. The values v are as large as can be: what a method makes of its inputs before a
    free number comes in.
    """
    known: dict[Node, _Sum | None] = {}
    depends: set[Node] = set()
    for node in walk([output]):
        if node.op == "free" or any(part in depends for part in node.inputs):
            depends.add(node)
            known[node] = _free_sum(node, known)
        elif node.op == "literal":
            known[node] = _Sum(float(node.attributes[0]))
        elif node.op == "broadcast" and node.inputs[0].op == "literal":
            known[node] = known[node.inputs[0]]
        elif isinstance(node, Value):
            known[node] = _Sum(coefficients={node: 1.0})
    found = known.get(output)
    if found is None or isinstance(found.constant, Scalar):
        return None
    return {v: c for v, c in found.coefficients.items() if isinstance(c, Scalar)}


def _free_sum(node: Node, known: Mapping[Node, _Sum | None]) -> _Sum | None:
    if isinstance(node, Scalar):
        return _Sum(node) if node.scope is Scope.FREE else None
    return _combined(node.op, [known.get(part) for part in node.inputs])
