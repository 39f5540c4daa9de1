"""One operator behind RegMean, WUDI, OptMerge and their spectral forms: targets weighed by Gram matrices.

    T = T_0 + (sum_i (T_i - T_0) G_i) f(C) C^+,     C = sum_i G_i

minimises sum_i ||(T - T_i) G_i^(1/2)||^2 for f = 1, and stays at T_0 in directions that no G_i reaches. Matrices are
(outputs, inputs), Gram matrices (inputs, inputs). Everything is float64.

A well-conditioned C without filter is solved directly; else C is diagonalised, and directions whose eigenvalue is
rounding are left out, so that they are never amplified. Where the Gram matrices come as factors, C = R^T R, and R
has fewer rows than columns, R R^T takes the place of C: R g(R^T R) = g(R R^T) R for every g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Spectrum, differentiable, falling, without_gradient
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.parts.matrices import MatrixRules, in_float64
from weightsmith.methods.parts.registry import shared
from weightsmith.methods.parts.rounding import rounding_of
from weightsmith.methods.parts.triangular import divided, factorised
from weightsmith.tensors import DType

_PRECISION = 2.3e-16
# Estimated condition number up to which a direct solve is exact to float32 rounding.
_WELL_CONDITIONED = 1e8
_PROBES = 8
# How far above the estimate of rounding a direction has to be to be solved for, which divides by what is left.
_SOLVED = 1.25


def rank_tolerance_parameter() -> Any:
    """Up to where directions count as rounding."""
    return shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="directions up to this share of the strongest one's singular value count as 0; "
        "none: max(m, n) times the precision",
    )


@dataclass(frozen=True, slots=True)
class GramRules(MatrixRules):
    """The parameters of methods that solve with Gram matrices of task vectors."""

    embeddings: str = shared(
        "average",
        choices=("spectral", "average", "sum", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`; their rows span no "
        "inputs",
    )
    rank_tolerance: float | None = shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="directions up to this share of the strongest one's singular value count as 0; "
        "none: what rounding of the stored weights makes, and max(m, n) times the precision",
    )


def cutoff_of(linalg: Any, array: Any, tolerance: float | None) -> float:
    """The relative eigenvalue up to which directions of C are rounding of the array that it was made from."""
    singular = tolerance
    if singular is None:
        singular = max(array.shape) * float(linalg.finfo(array.dtype).eps)
    return float(max(singular**2, 8 * max(array.shape) * _PRECISION))


def rounding_floor(
    linalg: Any,
    base: Any,
    deltas: Sequence[Any],
    tolerance: float | None,
    stored: DType = DType.FLOAT32,
    lengths: Sequence[float] | None = None,
) -> float:
    """The eigenvalue of C that the rounding of theta_0 + tau_i alone can make; 0 where a tolerance is given.

        sum_i (s_i / ||tau_i||)^2

    or with `lengths` in the place of ||tau_i|| where Gram matrices are divided by other squares. s_i is the largest
    singular value of the errors of weights that were stored in a narrow dtype (see `rounding`), and at least precision
    * rms(theta_0) * (sqrt m + sqrt n), a bound of those in the work precision. Tasks that pull one direction apart are
    told from each other by the rounding of their weights otherwise, and the minimiser then amplifies it without bound.
    """
    if tolerance is not None:
        return 0.0
    m, n = base.shape
    spread = m**-0.5 + n**-0.5
    bound = (
        float(linalg.finfo(base.dtype).eps) * frobenius(linalg, in_float64(linalg, base)) * spread
    )
    floor = 0.0
    for i, delta in enumerate(deltas):
        length = lengths[i] if lengths else frobenius(linalg, in_float64(linalg, delta))
        own = max(bound, _SOLVED * rounding_of(linalg, base, delta, stored).strength)
        floor += (own / length) ** 2 if length else 0.0
    return float(floor)


def directions(
    linalg: Any, gram: Any, cutoff: float, floor: float = 0.0, tensor: str = ""
) -> Spectrum:
    """Of a symmetric positive semidefinite matrix: eigenvalues above the share `cutoff` of the largest, and `floor`.

    Eigenvectors are the columns of `left`. `tensor` is the name that an error of their gradients gives.
    """
    scale = number(abs(gram).max())
    if scale == 0.0:
        return Spectrum(gram[:, :0], gram[:0, 0], gram[:0])
    relative = _symmetric(gram, scale)
    values, vectors = linalg.linalg.eigh(without_gradient(relative))
    values, vectors = falling(linalg, values, vectors, None)
    kept = max(1, int((values > max(cutoff * number(values[0]), floor / scale)).sum()))
    found = Spectrum(vectors, values, vectors.T)
    return differentiable(relative, found, slice(kept), tensor).times(scale)


def solve(
    linalg: Any,
    residual: Any,
    gram: Any,
    cutoff: float,
    elsewhere: Any = None,
    floor: float = 0.0,
    tensor: str = "",
) -> Any:
    """residual C^+, (m, n): directly where C is well conditioned, else over the directions above the tolerance.

    In the directions that are left out the result is that of `elsewhere`, or 0.
    """
    trace = number(gram.trace()) if gram.shape[0] else 0.0
    relative = max(cutoff, _PRECISION, floor / trace if trace > 0.0 else 0.0)
    direct = _direct(linalg, residual, gram, min(_WELL_CONDITIONED, 0.1 / relative))
    if direct is not None:
        return direct
    found = directions(linalg, gram, cutoff, floor, tensor)
    images = found.through(residual @ found.left, reciprocal)  # [outputs, rank]
    if elsewhere is None:
        return images @ found.left.T
    return elsewhere + (images - elsewhere @ found.left) @ found.left.T


def reciprocal(values: Any) -> Any:
    """1 / values."""
    return 1.0 / values


def _direct(linalg: Any, residual: Any, gram: Any, limit: float) -> Any:
    """residual C^-1, or None where C is not positive definite or its condition number may be above the limit.

    The norm of C^-1 is estimated from its effect on a few vectors of signs, which give its Frobenius norm on average;
    with that of C it bounds the condition number.
    """
    n = gram.shape[0]
    scale = number(gram.trace()) if n else 0.0
    if not 0.0 < scale < float("inf"):
        return None
    unit = _symmetric(gram, scale)
    norm = number(unit.reshape(-1) @ unit.reshape(-1)) ** 0.5
    try:
        factor = factorised(linalg, unit)
    except linalg.linalg.LinAlgError:
        return None
    # Cholesky's pivots tell most singular matrices for a tenth of the time of the eigenvectors.
    pivots = linalg.diagonal(factor)
    if number(pivots.max()) ** 2 > limit * number(pivots.min()) ** 2:
        return None
    images = divided(linalg, _signs(linalg, residual, n), factor)  # [probes, n]
    condition = number(linalg.sqrt((images * images).sum(1)).max()) * norm
    return divided(linalg, residual / scale, factor) if condition < limit else None


def _symmetric(gram: Any, scale: float) -> Any:
    """(C + C^T) / (2 scale), divided in place: a new matrix costs as much as the division."""
    result = gram + gram.T
    result /= 2.0 * scale
    return result


def _signs(linalg: Any, like: Any, n: int) -> Any:
    import numpy as np

    bits = np.random.Philox(key=[0x6772616D, 0]).random_raw(n)
    signs = (bits >> np.arange(_PROBES, dtype=np.uint64)[:, None]) & np.uint64(1)
    array = signs.astype(np.float64) * 2.0 - 1.0
    return linalg.from_numpy(array).to(like.device) if hasattr(linalg, "from_numpy") else array


@dataclass(frozen=True, slots=True)
class Reduced:
    """T - T_0 = residual f(gram) gram^+ lift, with C for `gram` and no `lift`, or with R R^T and R if R is wide."""

    residual: Any
    gram: Any
    lift: Any = None

    def step(self, shares: Any) -> Any:
        """The step from its shares in the directions of `gram`."""
        return shares if self.lift is None else shares @ self.lift


@dataclass(frozen=True, slots=True)
class Problem:
    """min over T of sum_i ||(T - targets_i) factors_i^T||^2, begun at `start`: G_i = factors_i^T factors_i."""

    start: Any
    targets: Sequence[Any]
    factors: Sequence[Any]

    def reduced(self, linalg: Any) -> Reduced:
        """The residual sum_i (T_i - T_0) G_i and C, in the smaller of the two spaces."""
        gaps = [target - self.start for target in self.targets]
        pairs = list(zip(gaps, self.factors, strict=True))
        if self.rows < self.start.shape[1]:
            stacked = linalg.concatenate(list(self.factors))  # [rows, inputs]
            # Side by side: [outputs, rows].
            residual = linalg.concatenate([gap @ factor.T for gap, factor in pairs], 1)
            return Reduced(residual, stacked @ stacked.T, stacked)
        residual, gram = None, None
        for gap, factor in pairs:
            one = factor.T @ factor  # [inputs, inputs]
            residual = gap @ one if residual is None else residual + gap @ one
            gram = one if gram is None else gram + one
        return Reduced(residual, gram)

    @property
    def rows(self) -> int:
        """Rows of all factors."""
        return sum(int(factor.shape[0]) for factor in self.factors)

    def solution(self, linalg: Any, cutoff: float, floor: float = 0.0, tensor: str = "") -> Any:
        """T for f = 1."""
        reduced = self.reduced(linalg)
        return self.start + reduced.step(
            solve(linalg, reduced.residual, reduced.gram, cutoff, floor=floor, tensor=tensor)
        )

    def descended(self, linalg: Any, step: Descent) -> Any:
        """T after a fixed number of gradient steps from the start, which is left only if it is not the minimiser.

        One task is its own minimiser, and Adam makes steps of full size out of the rounding of a gradient of 0.
        """
        quadratic = _Quadratic.of(linalg, self)
        if quadratic.is_least(self.start):
            return self.start
        return step.run(linalg, self.start, quadratic)


@dataclass(frozen=True, slots=True)
class _Quadratic:
    """The gradient 2 (T C - D), with C as a matrix or as a thin factor, whichever multiplies faster."""

    gram: Any
    factor: Any
    constant: Any
    rounding: float

    @classmethod
    def of(cls, linalg: Any, problem: Problem) -> _Quadratic:
        pairs = zip(problem.targets, problem.factors, strict=True)
        terms = [-(target @ factor.T) @ factor for target, factor in pairs]
        factor = linalg.concatenate(list(problem.factors))  # [rows, inputs]
        rounding = rounding_of_sum(terms)
        if 2 * factor.shape[0] < factor.shape[1]:
            return cls(None, factor, total(terms), rounding)
        return cls(factor.T @ factor, None, total(terms), rounding)

    def gradient(self, at: Any) -> Any:
        product = at @ self.gram if self.factor is None else (at @ self.factor.T) @ self.factor
        return 2.0 * (product + self.constant)

    def is_least(self, at: Any) -> bool:
        """Whether the gradient is rounding alone."""
        return bool(number(abs(self.gradient(at)).max()) <= 2.0 * self.rounding)


@dataclass(frozen=True, slots=True)
class Descent:
    """A deterministic schedule: Adam (betas .9 and .999, epsilon 1e-8), or gradient descent with momentum .9."""

    optimizer: str
    steps: int
    rate: float

    def run(self, linalg: Any, start: Any, objective: Any) -> Any:
        """The point after all steps."""
        return (self._adam if self.optimizer == "adam" else self._sgd)(linalg, start, objective)

    def _adam(self, linalg: Any, point: Any, objective: Any) -> Any:
        first = point * 0.0
        second = first
        for step in range(1, self.steps + 1):
            gradient = objective.gradient(point)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * (gradient * gradient)
            size = roots(linalg, second / (1.0 - 0.999**step)) + 1e-8
            point = point - (self.rate / (1.0 - 0.9**step)) * first / size
        return point

    def _sgd(self, linalg: Any, point: Any, objective: Any) -> Any:
        velocity = point * 0.0
        for _ in range(self.steps):
            velocity = 0.9 * velocity + objective.gradient(point)
            point = point - self.rate * velocity
        return point


def number(x: Any) -> float:
    """A single number of an array library as a float, for decisions that no gradient flows through."""
    return float(x.detach() if hasattr(x, "detach") else x)


def rounding_of_sum(terms: Sequence[Any]) -> float:
    """What rounding may leave of a sum of products of matrices that is 0."""
    largest = max(number(abs(term).max()) for term in terms)
    return 8.0 * len(terms) * float(max(terms[0].shape)) * _PRECISION * largest


def roots(linalg: Any, squares: Any) -> Any:
    """Square roots; the gradient of those of 0 is 0, as it is of a length that something of length 0 is divided by."""
    positive = squares > 0.0
    return linalg.where(positive, linalg.sqrt(linalg.where(positive, squares, 1.0)), 0.0)


def total(terms: Sequence[Any]) -> Any:
    """Sum from left to right."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def task_problem(linalg: Any, deltas: Sequence[Any], start: str) -> Problem | None:
    """WUDI's problem: targets tau_i with Gram matrices tau_i^T tau_i / ||tau_i||^2; None where all tau_i are 0.

    The start is the sum or mean of all task vectors, or zero; zero task vectors have no Gram matrix.
    """
    wide = [in_float64(linalg, d) for d in deltas]
    alive = [(d, r) for d in wide if (r := unit(linalg, d)) is not None]
    if not alive:
        return None
    return Problem(begun(wide, start), [d for d, _ in alive], [r for _, r in alive])


def begun(deltas: Sequence[Any], start: str) -> Any:
    """The sum or mean of matrices, or zero."""
    if start == "zero":
        return deltas[0] * 0.0
    return total(deltas) if start == "sum" else total(deltas) / float(len(deltas))


def unit(linalg: Any, matrix: Any) -> Any:
    """matrix / ||matrix||, or None for a zero matrix; of any size of numbers."""
    largest = number(abs(matrix).max())
    if largest == 0.0:
        return None
    relative = matrix / largest
    return relative / linalg.sqrt((relative * relative).sum())
