"""Norm clipping: no expert may have changed much more than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Scalar, Site, Value, dot, scalars, solve, value, where
from weightsmith.methods.parts.modifiers import deltas_of, displaced, modifier
from weightsmith.methods.parts.registry import Base, shared
from weightsmith.methods.parts.span import root


@modifier(
    "clip",
    title="Norm clipping",
    paper="Sun et al., 2019, arXiv:1911.07963",
    base=Base.OPTIONAL,
)
@dataclass(frozen=True, slots=True)
class Clip:
    """Shorten task vectors that are longer than a bound; directions stay.

        tau'_i = tau_i min(1, c / ||tau_i||)
        c = limit reference_j ||tau_j||     over the experts j that changed at all; reference: median, mean, smallest
        c = limit                           reference: one

    Norms are Euclidean, over the tensor, over all tensors of its layer, or over the whole model (scope). Tensors
    outside the layers are clipped by themselves with scope layer. The median of an even number is the mean of
    the middle two. Without a base the weights themselves are clipped. Vectors within the bound are untouched.
    """

    limit: float = shared(1.0, low=0.0, doc="the bound, as a multiple of the reference")
    reference: str = shared(
        "median",
        choices=("median", "mean", "smallest", "one"),
        doc="norm that the limit is a multiple of: of those of the experts, or 1",
    )
    scope: str = shared(
        "tensor", choices=("tensor", "layer", "model"), doc="tensors that a norm is taken over"
    )

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Shorten the long ones."""
        deltas = deltas_of(base, experts)
        rule = ClipFactors(self.limit, self.reference)
        factors = solve(rule, [self._square(i, d, site) for i, d in enumerate(deltas)], len(deltas))
        result = []
        for expert, delta, factor in zip(experts, deltas, factors, strict=True):
            shorter = delta * factor
            clipped = shorter if base is None else base + shorter
            untouched = value(factor).equals(1.0)
            result.append(displaced(base, shorter, where(untouched, expert, clipped)))
        return result

    def _square(self, expert: int, delta: Value, site: Site) -> Scalar:
        if self.scope == "layer" and site.layer is not None:
            return dot(delta, delta, site.over_layer(site.layer, "clip", expert))
        scope = "model" if self.scope == "model" else "tensor"
        return dot(delta, delta, site.over(scope, "clip", expert))


@dataclass(frozen=True, slots=True)
class ClipFactors:
    """One factor for each of N squared norms."""

    limit: float
    reference: str

    def __call__(self, *squares: Any) -> list[Any]:
        """Factors in [0, 1]; 1 for a vector of zeros, and wherever a norm is NaN."""
        norms = [root(s) for s in squares]
        bound = self.limit * (1.0 if self.reference == "one" else self._reference(norms))
        return [
            scalars.where(norm > bound, bound / scalars.where(norm > 0, norm, 1.0), 1.0)
            for norm in norms
        ]

    def _reference(self, norms: list[Any]) -> Any:
        changed: Any = 0.0
        for norm in norms:
            changed = changed + scalars.where(norm > 0, 1.0, 0.0)
        if self.reference == "mean":
            total: Any = 0.0
            for norm in norms:
                total = total + norm
            return scalars.divide(total, changed)
        ordered = _descending(norms)
        if self.reference == "smallest":
            return _entry(ordered, changed - 1.0)
        middle = scalars.floor(changed / 2.0)
        other = scalars.floor((changed - 1.0) / 2.0)
        return (_entry(ordered, middle) + _entry(ordered, other)) / 2.0


def _descending(numbers: list[Any]) -> list[Any]:
    """Sorted from large to small by comparisons that work for arrays, so that zeros come last."""
    remaining = list(numbers)
    for end in range(len(remaining) - 1, 0, -1):
        for i in range(end):
            a, b = remaining[i], remaining[i + 1]
            larger = a >= b
            remaining[i] = scalars.where(larger, a, b)
            remaining[i + 1] = scalars.where(larger, b, a)
    return remaining


def _entry(numbers: list[Any], position: Any) -> Any:
    """The number at a position that is itself computed; 0 outside."""
    found: Any = 0.0
    for i, number in enumerate(numbers):
        found = scalars.where(position == i, number, found)
    return found
