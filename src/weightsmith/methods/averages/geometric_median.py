"""Geometric median: the point with the smallest sum of distances to the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, dot, linear_combination, solve
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.parts.registry import Base, method, per_expert
from weightsmith.methods.parts.span import total
from weightsmith.methods.parts.spectra import constant

Floats: TypeAlias = NDArray[np.float64]

# An expert is a median where the pull of the others exceeds its weight by no more than this share of all weight, which
# is rounding.
_EQUAL = 1e-14
# Directions of unit vectors weaker than this, times their number, are the rounding of their dot products.
_PRECISION = 2.3e-16
# A step so small beside the nearest expert's distance ends the search; five to thirty are taken.
_STEP = 1e-14
_STEPS = 500


@method(
    "geometric_median",
    title="Geometric median",
    paper="Weiszfeld, 1937; at experts: Vardi and Zhang, 2000",
    base=Base.IGNORED,
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """Robust centre of the experts, per tensor.

        theta = argmin_x f(x),   f(x) = sum_i w_i |x - theta_i|
        theta = sum_i c_i theta_i,   c_i = (w_i / |theta - theta_i|) / sum_j (w_j / |theta - theta_j|)
        or theta = theta_k where |sum_{i != k} w_i (theta_i - theta_k) / |theta_i - theta_k|| <= w_k

    The second condition holds at an expert of half the weight, copies of an expert counting together. Where no expert
    meets it, f is smooth at its minimum, and Newton's method finds that from a point that is below every expert: to
    about 1e-8 of the distance between the experts and usually to 1e-14, however near to one of them it is; Weiszfeld's
    iteration of c would need thousands of steps there. All of this runs on the distances between the experts in
    float64. Two experts of equal weight, of which every point between them is a median, give their mean, and so do
    several experts on a line that are medians. Identical experts give that expert. Fewer than half of the weight cannot
    pull the result arbitrarily far.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="weight of each expert's distance")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Find the median of the experts; the base plays no part."""
        weights = normalized(self.weight)
        n = len(experts)
        if n == 1:
            return experts[0]
        gaps = [experts[i] - experts[j] for i in range(n) for j in range(i)]
        coefficients = solve(MedianOfDistances(tuple(weights)), [dot(g, g) for g in gaps], n)
        deltas = [e - experts[0] for e in experts[1:]]
        return experts[0] + linear_combination(deltas, coefficients[1:])


@dataclass(frozen=True, slots=True)
class MedianOfDistances:
    """Coefficients c_i of the median, from the squared distances of experts 2 and 1, 3 and 1, 3 and 2, 4 and 1, ..."""

    weights: tuple[float, ...]

    def __call__(self, *squares: Any) -> list[Any]:
        """N coefficients that sum to 1."""
        known = _matrix(len(self.weights), [constant(square) for square in squares])
        if not np.isfinite(known).all():
            return [total(squares) * 0.0 + w for w in self.weights]
        heavy = [i for i, w in enumerate(self.weights) if w > 0.0]
        found = median(known[np.ix_(heavy, heavy)], np.array(self.weights)[heavy])
        pairs = [squares[i * (i - 1) // 2 + j] for i in heavy for j in heavy if j < i]
        coefficients: list[Any] = [0.0] * len(self.weights)
        for place, i in enumerate(heavy):
            coefficients[i] = float(found.coefficients[place])
        if found.distances is not None and any(getattr(s, "requires_grad", False) for s in pairs):
            changes = [square - constant(square) for square in pairs]
            for i, slopes in zip(heavy, found.slopes(), strict=True):
                terms = [c * float(s) for c, s in zip(changes, slopes, strict=True)]
                coefficients[i] += total(terms)
        return coefficients


@dataclass(frozen=True, slots=True)
class Median:
    """Coefficients of points with these squared distances and weights, and how far each is from the median where that
    is none of them.
    """

    squares: Floats
    weights: Floats
    coefficients: Floats
    distances: Floats | None = None

    def slopes(self) -> Floats:
        """The derivatives of c by each squared distance D_ij, j < i, that those of c = W(c) imply.

            (1 - dW/dc)^-1 dW/dD,   W(c)_i = p_i / sum p,   p_i = w_i q_i^(-1/2)
            q_i = |x - x_i|^2 = (D c)_i - c^T D c / 2

        Raises RecipeError where the median does not move smoothly.
        """
        assert self.distances is not None
        n, c = len(self.coefficients), self.coefficients
        pulls = self.weights / self.distances
        by_square = -0.5 * pulls / self.distances**2
        to_shares = (np.eye(n) - c[:, None]) * by_square / pulls.sum()
        by_c = to_shares @ (self.squares - self.squares @ c)
        columns = []
        for i in range(n):
            for j in range(i):
                change = np.full(n, -c[i] * c[j])
                change[i] += c[j]
                change[j] += c[i]
                columns.append(to_shares @ change)
        try:
            return np.asarray(np.linalg.solve(np.eye(n) - by_c, np.stack(columns, 1)))
        except np.linalg.LinAlgError:
            raise RecipeError(
                "geometric_median: many points are medians of this tensor, and none of them has a derivative; "
                "learn its weights with another method, such as linear."
            ) from None


def median(squares: Floats, weights: Floats) -> Median:
    """The median of N points from their squared distances, (N, N), and weights above 0 that sum to 1."""
    places = _distinct(squares)
    heads = [place[0] for place in places]
    own = np.array([weights[place].sum() for place in places])
    apart = squares[np.ix_(heads, heads)]
    medians = [k for k in range(len(places)) if _pull(apart, own, k) <= own[k] + _EQUAL]
    coefficients = np.zeros(len(weights))
    if medians:
        for k in medians:
            coefficients[places[k]] = weights[places[k]] / (own[k] * len(medians))
        return Median(squares, weights, coefficients)
    found = smooth_median(apart, own)
    distances = np.zeros(len(weights))
    for k, place in enumerate(places):
        distances[place] = found[k]
    pulls = weights / distances
    coefficients = pulls / pulls.sum()
    return Median(squares, weights, coefficients, distances)


def smooth_median(squares: Floats, weights: Floats) -> Floats:
    """The distances of distinct points to their median, which is none of them, from their squared distances.

    Coordinates have their origin at the best of the points, so that a median near it is found to the same digits.
    """
    best = int(np.argmin(np.sqrt(squares) @ weights))
    order = [best, *(k for k in range(len(weights)) if k != best)]
    objective = _Distances(_coordinates(squares[np.ix_(order, order)]), weights[order])
    found = np.empty(len(weights))
    found[order] = objective.lengths(objective.minimum())
    return found


@dataclass(frozen=True, slots=True)
class _Distances:
    """f(x) = sum_i w_i |x - p_i| of points (N, dimensions), the first of which is the origin and no minimum."""

    points: Floats
    weights: Floats

    def minimum(self) -> Floats:
        """Newton's method, from a point that is below all p_i, where f is smooth.

        Raises RecipeError for points that leave it without an end.
        """
        x = self._start()
        for _ in range(_STEPS):
            gaps, lengths, gradient = self._slope(x)
            sizes = 1.0 + np.linalg.norm(self.points, axis=1) / lengths
            if np.linalg.norm(gradient) <= 4.0 * _PRECISION * (self.weights * sizes).sum():
                return x
            units = gaps / lengths[:, None]
            pulls = self.weights / lengths
            curvature = pulls.sum() * np.eye(len(x)) - (units.T * pulls) @ units
            curvature[np.diag_indices(len(x))] += _PRECISION * pulls.sum()
            try:
                step = np.linalg.solve(curvature, gradient)
            except np.linalg.LinAlgError:
                break
            x = x - step
            if np.linalg.norm(step) <= _STEP * lengths.min():
                return x
        raise RecipeError(
            f"geometric_median: no median was found in {_STEPS} steps; merge this tensor with another method, "
            "such as trimmed_mean."
        )

    def lengths(self, x: Floats) -> Floats:
        """|x - p_i|."""
        found: Floats = np.linalg.norm(x - self.points, axis=1)
        return found

    def _slope(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        gaps = x - self.points
        lengths = np.maximum(np.linalg.norm(gaps, axis=1), np.finfo(np.float64).tiny)
        return gaps, lengths, self.weights @ (gaps / lengths[:, None])

    def _start(self) -> Floats:
        """From the origin along the pull of the others, not beyond where f falls no more."""
        lengths = np.linalg.norm(self.points[1:], axis=1)
        units, others = self.points[1:] / lengths[:, None], self.weights[1:]
        pull = others @ units
        size = float(np.linalg.norm(pull))
        along = pull / size
        bend = float((others / lengths) @ (1.0 - (units @ along) ** 2))
        step = float(lengths.min()) / 2.0
        if bend > 0.0:
            step = min(step, (size - float(self.weights[0])) / bend)
        while self._slope(step * along)[2] @ along > 0.0:
            step /= 2.0
        return np.asarray(step * along)


def _coordinates(squares: Floats) -> Floats:
    """Points (N, dimensions) with these squared distances, the first of them 0.

    Their directions come from the dot products of unit vectors, so that near and far points keep their own digits.
    """
    lengths = np.sqrt(squares[0, 1:])
    products = (squares[0, 1:, None] + squares[0, 1:] - squares[1:, 1:]) / 2.0
    values, vectors = np.linalg.eigh(products / np.outer(lengths, lengths))
    kept = values > len(values) * _PRECISION * values[-1]
    units = vectors[:, kept] * np.sqrt(values[kept])
    return np.concatenate([np.zeros((1, units.shape[1])), units * lengths[:, None]])


def _pull(squares: Floats, weights: Floats, k: int) -> float:
    """|sum_{i != k} w_i (p_i - p_k) / |p_i - p_k|| of distinct points."""
    others = np.arange(len(weights)) != k
    near = squares[k, others]
    products = (near[:, None] + near - squares[np.ix_(others, others)]) / 2.0
    pulls = weights[others] / np.sqrt(near)
    return float(np.sqrt(max(pulls @ products @ pulls, 0.0)))


def _distinct(squares: Floats) -> list[list[int]]:
    """Points that are one, together."""
    places: list[list[int]] = []
    for i in range(len(squares)):
        same = next((place for place in places if squares[i, place[0]] == 0.0), None)
        if same is None:
            places.append([i])
        else:
            same.append(i)
    return places


def _matrix(n: int, squares: Sequence[float]) -> Floats:
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n, -1)] = squares
    return np.asarray(matrix + matrix.T)
