"""Is what a graph computes a sum of its sources with fixed coefficients, or of values with free numbers?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightsmith.graph import Node, Number, Scalar, Scope, Value, walk
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


@dataclass(frozen=True, slots=True)
class _FreeSum:
    """number + sum_v coefficients[v] v, where numbers may be made of free ones and values are free of them."""

    number: Number = 0.0
    coefficients: Mapping[Value, Number] = field(default_factory=dict)

    def plus(self, other: _FreeSum, times: Number = 1.0) -> _FreeSum:
        found = dict(self.coefficients)
        for value, coefficient in other.coefficients.items():
            more = coefficient * times
            found[value] = found[value] + more if value in found else more
        return _FreeSum(self.number + other.number * times, found)

    def times(self, factor: Number) -> _FreeSum:
        found = {value: c * factor for value, c in self.coefficients.items()}
        return _FreeSum(self.number * factor, found)


def free_terms(output: Value) -> dict[Value, Scalar] | None:
    """c_v with output = (what is free of free numbers) + sum_v c_v v, the c_v being made of free numbers alone.

    None where the graph is no such sum. The values v are as large as can be: what a method makes of its inputs before a
    free number comes in.
    """
    known: dict[Node, _FreeSum | None] = {}
    depends: set[Node] = set()
    for node in walk([output]):
        if node.op == "free" or any(part in depends for part in node.inputs):
            depends.add(node)
            known[node] = _free_sum(node, known)
        elif isinstance(node, Value):
            known[node] = _FreeSum(coefficients={node: 1.0})
        elif node.op == "literal":
            known[node] = _FreeSum(float(node.attributes[0]))
    found = known.get(output)
    if found is None or isinstance(found.number, Scalar):
        return None
    return {v: c for v, c in found.coefficients.items() if isinstance(c, Scalar)}


def _free_sum(node: Node, known: Mapping[Node, _FreeSum | None]) -> _FreeSum | None:
    if isinstance(node, Scalar):
        return _FreeSum(node) if node.scope is Scope.FREE else None
    parts = [known.get(part) or _number_sum(part) for part in node.inputs]
    if any(part is None for part in parts):
        return None
    sums = [part for part in parts if part is not None]
    if node.op == "broadcast":
        return sums[0]
    if node.op == "neg":
        return sums[0].times(-1.0)
    if node.op in ("add", "sub"):
        return sums[0].plus(sums[1], 1.0 if node.op == "add" else -1.0)
    return _free_product(node.op, *sums) if node.op in ("mul", "div") else None


def _number_sum(node: Node) -> _FreeSum | None:
    return _FreeSum(node) if isinstance(node, Scalar) and node.scope is Scope.FREE else None


def _free_product(op: str, left: _FreeSum, right: _FreeSum) -> _FreeSum | None:
    left, right = _as_numbers(left), _as_numbers(right)
    if op == "mul" and not right.coefficients:
        return left.times(right.number)
    if op == "mul" and not left.coefficients:
        return right.times(left.number)
    if op == "div" and not right.coefficients:
        return left.times(1.0 / right.number)
    return None


def _as_numbers(given: _FreeSum) -> _FreeSum:
    """The same with values that are one literal for all elements as numbers."""
    kept: dict[Value, Number] = {}
    total = given.number
    for value, coefficient in given.coefficients.items():
        if value.op == "broadcast" and value.inputs[0].op == "literal":
            total = total + coefficient * float(value.inputs[0].attributes[0])
        else:
            kept[value] = coefficient
    return _FreeSum(total, kept)
