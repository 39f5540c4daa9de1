"""Karcher mean: the Riemannian centre of mass of directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Number, Scalar, Site, Value, linear_combination, scalars, solve
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.span import (
    NO_DIRECTION,
    root,
    span_combination,
    symmetric,
    total,
    upper_triangle,
    vectors_described,
)
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

# Sine of the angle from the antipode below which a direction points nowhere, as the antipode itself.
_ANTIPODE = 1e-7
# Each step of a mean that has settled brings its gradient nearer, by what the steps before brought the mean.
_STEPS_OF_GRADIENTS = 16


@method(
    "karcher",
    title="Karcher mean",
    paper="Karcher, 1977; for models arXiv:2603.04972",
    base=Base.IGNORED,
    presets={"mergekit": {"max_iter": 10, "tol": 1e-5, "zero_norm": None}},
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class Karcher:
    """Mean direction on the unit sphere, times the mean length.

        n_i = |theta_i|;   u_i = theta_i / n_i;   m = normalise(sum_i w_i u_i)
        repeat:  phi_i = arccos <m, u_i>;   T = sum_i w_i (phi_i / sin phi_i) (u_i - cos(phi_i) m)
                 m = cos|T| m + sin|T| T / |T|                until |T| < tol
        theta = (sum_i w_i n_i) m

    theta_i are whole flattened tensors. The iteration runs on the N x N Gram matrix in float64, never on the
    tensors, so it can afford to converge: 50 steps to 1e-10 here, 10 steps to 1e-5 in mergekit. Tensors no
    longer than `zero_norm` have no direction, but count in the mean length; all of them zero give zero.
    Directions that cancel start from the first one, and an antipode of m is skipped. One expert is returned as
    it is.
    """

    weight: tuple[float, ...] = per_expert(
        1.0, doc="coefficient of each expert; normalised to sum 1"
    )
    max_iter: int = shared(50, low=0, high=1000, doc="largest number of steps")
    tol: float = shared(
        1e-10, low=0.0, doc="angle below which a step, or an expert's part in it, is nothing"
    )
    zero_norm: float | None = shared(
        0.0,
        low=0.0,
        optional=True,
        doc="length up to which a tensor is zero; none: the value of tol",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts; the base plays no part."""
        if len(experts) == 1:
            return experts[0]
        return span_combination(experts, self._coefficients(experts))

    def _coefficients(self, vectors: Sequence[Value]) -> Sequence[Scalar]:
        zero_norm = self.tol if self.zero_norm is None else self.zero_norm
        arguments: list[Number] = [*normalized(self.weight), *upper_triangle(vectors)]
        solver = KarcherSolver(self.max_iter, self.tol, zero_norm)
        return solve(solver, arguments, len(vectors))


@method(
    "task_karcher",
    title="Karcher mean of task vectors",
    paper="Karcher, 1977; for models arXiv:2603.04972",
    base=Base.REQUIRED,
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class TaskKarcher(Karcher):
    """`karcher` of what fine-tuning changed, from the base outwards.

        tau_i = theta_i - theta_0;   theta = theta_0 + lambda (the Karcher mean of the tau_i)

    Weights of fine-tunes point almost the same way, so that their Karcher mean is next to their average; task vectors
    do not. No published variant: the formula is `karcher`'s with tau_i for theta_i. A task vector of zero has no
    direction but counts in the mean length, and N equal ones give theta_0 + lambda tau.
    """

    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the task vectors and add them to the base."""
        base, deltas = task_vectors(base, experts)
        if len(deltas) == 1:
            return base + (deltas[0] if self.scale == 1.0 else deltas[0] * self.scale)
        solved = self._coefficients(deltas)
        return base + linear_combination(deltas, [c * self.scale for c in solved])


@dataclass(frozen=True, slots=True)
class KarcherSolver:
    """Coefficients of the Karcher mean from N weights and the upper triangle of the Gram matrix."""

    max_iter: int
    tol: float
    zero_norm: float

    def __call__(self, *numbers: Any) -> list[Any]:
        """N coefficients: the mean is kept as a combination of the unit vectors, and |T| < tol stops the steps."""
        n = vectors_described(len(numbers))
        weights, products = numbers[:n], symmetric(n, numbers[n:])
        lengths = [root(products[i][i]) for i in range(n)]
        alive = [scalars.where(length > self.zero_norm, 1.0, 0.0) for length in lengths]
        inverse = [scalars.divide(a, length) for a, length in zip(alive, lengths, strict=True)]
        units = [[products[i][j] * (inverse[i] * inverse[j]) for j in range(n)] for i in range(n)]
        shares = _renormalised([w * a for w, a in zip(weights, alive, strict=True)])
        mean = self._start(shares, alive, units)
        for _ in range(self.max_iter):
            mean, settled = self._step(mean, shares, units)
            if scalars.all_true(settled):
                if any(getattr(number, "requires_grad", False) for number in numbers):
                    # Two vectors of one weight settle at once, and their mean's gradient with more steps.
                    for _ in range(_STEPS_OF_GRADIENTS):
                        mean = self._settled_step(mean, shares, units)
                break
        scale = total([w * length for w, length in zip(weights, lengths, strict=True)])
        return [scale * c * i for c, i in zip(mean, inverse, strict=True)]

    def _start(self, shares: list[Any], alive: list[Any], units: list[list[Any]]) -> list[Any]:
        length = root(_quadratic(shares, units))
        cancelled = length <= max(self.tol, NO_DIRECTION)
        first, seen = [], 0.0
        for a in alive:
            first.append(scalars.where(seen > 0, 0.0, a))
            seen = seen + a
        divisor = scalars.where(cancelled, 1.0, length)
        return [
            scalars.where(cancelled, f, s / divisor) for f, s in zip(first, shares, strict=True)
        ]

    def _settled_step(
        self, mean: list[Any], shares: list[Any], units: list[list[Any]]
    ) -> list[Any]:
        """A step of almost no length, without the roots of it that have no gradient there."""
        tangent = self._tangent(mean, shares, units)
        square = _quadratic(tangent, units)
        moved = [
            (1.0 - square / 2.0) * m + (1.0 - square / 6.0) * t
            for m, t in zip(mean, tangent, strict=True)
        ]
        size = root(_quadratic(moved, units))
        return [v / scalars.where(size > 0, size, 1.0) for v in moved]

    def _tangent(self, mean: list[Any], shares: list[Any], units: list[list[Any]]) -> list[Any]:
        """T: the mean of the logarithms at a mean."""
        cosines = [scalars.clamp(_inner(mean, row), -1.0, 1.0) for row in units]
        pulls = [s * self._log_factor(c) for s, c in zip(shares, cosines, strict=True)]
        back = total([p * c for p, c in zip(pulls, cosines, strict=True)])
        return [p - back * m for p, m in zip(pulls, mean, strict=True)]

    def _step(
        self, mean: list[Any], shares: list[Any], units: list[list[Any]]
    ) -> tuple[list[Any], Any]:
        tangent = self._tangent(mean, shares, units)
        length = root(_quadratic(tangent, units))
        settled = length <= self.tol
        forward = scalars.sin(length) / scalars.where(settled, 1.0, length)
        moved = [scalars.cos(length) * m + forward * t for m, t in zip(mean, tangent, strict=True)]
        size = root(_quadratic(moved, units))
        divisor = scalars.where(size > 0, size, 1.0)
        return [
            scalars.where(settled, m, v / divisor) for m, v in zip(mean, moved, strict=True)
        ], settled

    def _log_factor(self, cosine: Any) -> Any:
        sine = root(1.0 - cosine * cosine)
        # A cosine is known to about 1e-16, so that nothing tells an antipode from what is within 1e-8 of it.
        singular = sine <= scalars.where(cosine < 0, _ANTIPODE, 1e-12)
        angle = scalars.acos(scalars.where(singular, 0.0, cosine))
        skipped = scalars.where(singular, 0.0, angle) <= self.tol
        return scalars.where(skipped, 0.0, angle / scalars.where(singular, 1.0, sine))


def _renormalised(weights: list[Any]) -> list[Any]:
    whole = total(weights)
    return [scalars.divide(w, whole) for w in weights]


def _inner(a: list[Any], b: list[Any]) -> Any:
    return total([x * y for x, y in zip(a, b, strict=True)])


def _quadratic(c: list[Any], matrix: list[list[Any]]) -> Any:
    return _inner(c, [_inner(c, row) for row in matrix])
