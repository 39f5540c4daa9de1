"""Geometric median: the point with the smallest sum of distances to the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.linear import normalized
from weightsmith.methods.registry import Base, method, per_expert, shared
from weightsmith.methods.span import root, symmetric, total, upper_triangle
from weightsmith.tensors import scalars
from weightsmith.tensors.graph import Value, linear_combination, solve
from weightsmith.tensors.site import Site


@method(
    "geometric_median",
    title="Geometric median",
    paper="Weiszfeld, 1937; smoothed as in Pillutla et al., 2019, arXiv:1912.13445",
    base=Base.IGNORED,
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """Robust centre of the experts, per tensor.

        theta = argmin_x sum_i w_i |x - theta_i|
        Weiszfeld: x = sum_i c_i theta_i,   c_i <- (w_i / max(|x - theta_i|, nu)) / sum_j (w_j / max(|x - theta_j|, nu))

    starting at the mean. nu = smoothing x (smallest distance between two different experts) keeps the step
    finite at an expert, moves the result by about as little, and makes the method equivariant under scaling. The
    iteration runs on dot products of theta_i - theta_1 in float64 and stops when no c_i moves by more than `tol`.
    Identical experts give that expert; two experts of equal weight give their mean, of which every point between
    them is as good. Fewer than half of the weight cannot pull the result arbitrarily far.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="weight of each expert's distance")
    smoothing: float = shared(
        1e-6, low=1e-8, high=1.0, doc="nu, relative to the smallest distance of two experts"
    )
    max_iter: int = shared(200, low=1, high=10000, doc="largest number of steps")
    tol: float = shared(
        1e-9, low=0.0, doc="change of the coefficients at which the iteration stops"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Find the median of the experts; the base plays no part."""
        weights = normalized(self.weight)
        if len(experts) == 1:
            return experts[0]
        deltas = [e - experts[0] for e in experts[1:]]
        solver = WeiszfeldSolver(self.smoothing, self.max_iter, self.tol)
        coefficients = solve(solver, [*weights, *upper_triangle(deltas)], len(experts))
        return experts[0] + linear_combination(deltas, coefficients[1:])


@dataclass(frozen=True, slots=True)
class WeiszfeldSolver:
    """Coefficients c_i from N weights and the Gram matrix of theta_2 - theta_1, ..., theta_N - theta_1."""

    smoothing: float
    max_iter: int
    tol: float

    def __call__(self, *numbers: Any) -> list[Any]:
        """N coefficients that sum to 1."""
        n = _points_described(len(numbers))
        weights = list(numbers[:n])
        products = _bordered(symmetric(n - 1, numbers[n:]))
        c = weights
        nearest = _smallest_distance(products)
        floor = scalars.where(nearest > 0, self.smoothing * nearest, 1.0)
        for _ in range(self.max_iter):
            distances = [root(s) for s in _square_distances(c, products)]
            pulls = [
                w / scalars.where(d > floor, d, floor)
                for w, d in zip(weights, distances, strict=True)
            ]
            whole = total(pulls)
            moved = [p / whole for p in pulls]
            if all(scalars.all_true(abs(a - b) <= self.tol) for a, b in zip(c, moved, strict=True)):
                return moved
            c = moved
        return c


def _points_described(count: int) -> int:
    n = 1
    while n + (n - 1) * n // 2 < count:
        n += 1
    return n


def _bordered(products: list[list[Any]]) -> list[list[Any]]:
    return [[0.0] * (len(products) + 1), *([0.0, *row] for row in products)]


def _square_distances(c: list[Any], products: list[list[Any]]) -> list[Any]:
    """|x - x_i|^2 for x = sum_j c_j x_j, from dot products of the x_j."""
    projections = [total([a * b for a, b in zip(c, row, strict=True)]) for row in products]
    own = total([a * p for a, p in zip(c, projections, strict=True)])
    return [own - 2.0 * p + products[i][i] for i, p in enumerate(projections)]


def _smallest_distance(products: list[list[Any]]) -> Any:
    """Smallest nonzero distance between two of the x_j; 0 if all are one point."""
    smallest: Any = 0.0
    for i in range(len(products)):
        for j in range(i):
            squared = products[i][i] - 2.0 * products[i][j] + products[j][j]
            closer = (squared > 0) & ((smallest == 0) | (squared < smallest))
            smallest = scalars.where(closer, squared, smallest)
    return root(smallest)
