"""DOGE: a shared shift of all task vectors, outside the subspace they share, that closes the gap to every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.methods.iso import frobenius
from weightsmith.methods.matrices import (
    MatrixView,
    embeddings_parameter,
    in_dtype_of,
    in_float64,
    others_parameter,
)
from weightsmith.methods.registry import Base, method, shared
from weightsmith.methods.rounding import Rounding
from weightsmith.methods.span import root
from weightsmith.methods.spectra import Decomposition, LeadingRules, constant, require_finite
from weightsmith.methods.task_vectors import task_vectors
from weightsmith.tensors import scalars
from weightsmith.tensors.graph import Value, above, add_all, apply, dot, largest_share, where, whole
from weightsmith.tensors.shares import floor_of_share
from weightsmith.tensors.site import Site

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# Residual of the conjugate gradients, relative to the right-hand side, at which they stop.
_CONVERGED = 1e-10


@method(
    "doge",
    title="DOGE-TA (adaptive projective gradient descent)",
    paper="Wei et al., ICML 2025, arXiv:2501.01230",
    base=Base.REQUIRED,
    presets={"fusionbench": {"objective": "rows", "solver": "adam"}},
    cost="O(N m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class Doge(LeadingRules):
    """Norm-equalised task vectors, shifted by one matrix that lies outside the subspace all tasks share.

        lambda_i = eta / ||tau_i||  per tensor;   theta = theta_0 + sum_i lambda_i (tau_i + Delta) m_i
        Delta minimises sum_j <tau_j, tau_j - sum_i lambda_i (tau_i + Delta)>^2  subject to  P Delta = 0
        P = U_k U_k^T: the floor(min(m, n) / subspace) leading left directions of the tasks' floor(min(m, n) / N)
        m_i = the share `density` of largest |tau_i| over the matrices of the whole model

    The minimiser of least norm is a combination of the (I - P) tau_j, which an N x N system gives (solver closed).
    With objective "rows", as in the code at hand, inner products are of rows, and projected conjugate gradients
    solve the least-squares problem (at most `steps`). Solver adam is the code's own: `steps` steps with rate
    `rate` on projected gradients from 0, which leaves the subspace's complement a little, and which depends on the
    scale of the weights. Tensors that are no matrix, embeddings and heads stay at the base. A task that changed
    nothing has lambda_i = 0. Gradients take lambda_i as constants inside Delta. O(N m n min(m, n)) time; 2 N + 4
    matrices in float64.
    """

    others: str = others_parameter("base")
    embeddings: str = embeddings_parameter("base")
    eta: float = shared(0.07, low=0.0, doc="length of each task vector after equalisation")
    subspace: float = shared(
        6.0, low=1.0, doc="min(m, n) over this is the dimension of the shared subspace"
    )
    density: float = shared(
        0.3, low=0.0, high=1.0, doc="share of each task vector's elements that is kept"
    )
    objective: str = shared(
        "layer", choices=("layer", "rows"), doc="inner products of matrices, or of their rows"
    )
    solver: str = shared(
        "closed", choices=("closed", "adam"), doc="the exact minimiser, or the authors' descent"
    )
    steps: int = shared(400, low=0, doc="steps of the descent, or of the conjugate gradients")
    rate: float = shared(1e-4, low=0.0, doc="with solver adam: learning rate")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Shift, equalise and mask the task vectors and add them to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, [self.eta] * len(deltas), site)
            return base if merged is None else base + merged
        shift = whole(self._shift(view, site), *deltas, base)
        lengths = [apply(Equaliser(self.eta), dot(d, d)) for d in deltas]
        shifted = [(d + shift) * length for d, length in zip(deltas, lengths, strict=True)]
        return base + add_all(
            [
                self._masked(i, s, d, site)
                for i, (s, d) in enumerate(zip(shifted, deltas, strict=True))
            ]
        )

    def _masked(self, expert: int, shifted: Value, delta: Value, site: Site) -> Value:
        if self.density >= 1.0:
            return shifted
        kept = largest_share(
            abs(delta), self.density, site.over_model("mask", expert, self.density)
        )
        return where(above(abs(delta), kept), shifted, 0.0)

    def _shift(self, view: MatrixView, site: Site) -> SharedShift:
        return SharedShift(
            self.eta,
            self.subspace,
            self.objective == "rows",
            self.solver == "adam",
            self.steps,
            self.rate,
            self.how(site),
            view,
            site.name,
        )


@dataclass(frozen=True, slots=True)
class Equaliser:
    """lambda_i = eta / ||tau_i||, 0 for a task that changed nothing."""

    eta: float

    def __call__(self, square: Any) -> Any:
        """The coefficient of a task vector whose squared length is given."""
        return scalars.divide(self.eta, root(square), 0.0)


@dataclass(frozen=True, slots=True)
class SharedShift:
    """Delta for every matrix of a tensor, the lambda_i being those of the whole tensor; the base comes last."""

    eta: float
    subspace: float
    rows: bool
    descend: bool
    steps: int
    rate: float
    how: Decomposition
    view: MatrixView = field(repr=False)
    tensor: str = field(repr=False)

    def __call__(self, linalg: Any, *arrays: Any) -> Any:
        """The array of the stored shape, in the dtype of the inputs."""
        if 0 in arrays[0].shape:
            return arrays[0]
        require_finite(linalg, arrays, self.tensor)
        lengths = [frobenius(linalg, in_float64(linalg, a)) for a in arrays[:-1]]
        factors = [self.eta / length if length else 0.0 for length in lengths]
        groups = zip(*(self.view.split(a) for a in arrays), strict=True)
        shifts = [
            in_dtype_of(arrays[0], self._delta(linalg, list(matrices), factors))
            for matrices in groups
        ]
        return self.view.join(linalg, shifts)

    def _delta(self, linalg: Any, matrices: list[Any], factors: list[float]) -> Any:
        *matrices, base = matrices
        tasks = [in_float64(linalg, m) for m in matrices]
        total = sum(factors)
        live = [t for t, f in zip(tasks, factors, strict=True) if f]
        if not total or not live:
            return tasks[0] * 0.0
        merged = live[0] * 0.0
        for task, factor in zip(tasks, factors, strict=True):
            merged = merged + task * factor
        roundings = self.how.roundings(linalg, base, matrices)
        basis = self._shared_basis(linalg, matrices, roundings)

        def outside(matrix: Any) -> Any:
            return matrix - basis @ (basis.T @ matrix)

        floors = [r.square for r in roundings]
        left = [constant((outside(t) ** 2).sum()) for t in tasks]
        if any(floors) and all(s <= floor for s, floor in zip(left, floors, strict=True)):
            return merged * 0.0
        problem = Surrogate(linalg, live, merged, total, self.rows, outside)
        if self.descend:
            return problem.descended(self.steps, self.rate)
        if self.rows:
            return problem.conjugate_gradients(self.steps)
        return problem.closed(self.how.cut(linalg, matrices[0]), max(floors))

    def _shared_basis(self, linalg: Any, matrices: list[Any], roundings: Sequence[Rounding]) -> Any:
        """U_k: the leading left directions of the tasks' own, those of rounding left out."""
        smaller = min(matrices[0].shape)
        cut = self.how.cut(linalg, matrices[0])
        own = max(1, smaller // len(matrices))
        spectra = [
            self.how.spectrum(linalg, matrix, own, floor=rounding.strength)
            for matrix, rounding in zip(matrices, roundings, strict=True)
        ]
        joined = linalg.concatenate([s.left for s in spectra], 1)
        return self.how.spectrum(
            linalg, joined, floor_of_share(1.0 / self.subspace, smaller), cut
        ).left


@dataclass(frozen=True, slots=True)
class Surrogate:
    """sum_j <tau_j, c_j - s Delta>^2 with c_j = tau_j - sum_i lambda_i tau_i, over Delta = outside(Delta)."""

    linalg: Any
    tasks: list[Any]
    merged: Any
    total: float
    rows: bool
    outside: Callable[[Any], Any]

    def loss(self, delta: Any) -> float:
        """The objective."""
        return sum(constant((r * r).sum()) for r in self._residuals(delta))

    def closed(self, cut: float, floor: float = 0.0) -> Any:
        """The minimiser of least norm for inner products of whole matrices.

        Combinations of the free parts of which rounding has a squared length of `floor` have none.
        """
        linalg = self.linalg
        free = [self.outside(t) for t in self.tasks]
        gram = linalg.stack([linalg.stack([(a * b).sum() for b in free]) for a in free])
        wanted = linalg.stack([(t * (t - self.merged)).sum() for t in self.tasks]) / self.total
        values, vectors = linalg.linalg.eigh(gram)
        largest = max(constant((t * t).sum()) for t in self.tasks)
        known = values > max(largest * cut, floor)
        inverse = linalg.where(known, 1.0 / linalg.where(known, values, 1.0), 0.0)
        weights = vectors @ (inverse * (vectors.T @ wanted))
        delta = free[0] * weights[0]
        for matrix, weight in zip(free[1:], weights[1:], strict=True):
            delta = delta + matrix * weight
        return delta

    def conjugate_gradients(self, steps: int) -> Any:
        """The minimiser of least norm for inner products of rows, by conjugate gradients on the normal equations."""
        delta = self.merged * 0.0
        rest = self._normal([r / self.total for r in self._residuals(delta)])
        direction, square = rest, constant((rest * rest).sum())
        goal = square * _CONVERGED**2
        for _ in range(steps):
            if square <= goal:
                break
            images = [self._inner(t, direction) for t in self.tasks]
            bend = sum(constant((i * i).sum()) for i in images)
            if bend == 0.0:
                break
            step = square / bend
            delta = delta + direction * step
            rest = rest - self._normal(images) * step
            new = constant((rest * rest).sum())
            direction, square = rest + direction * (new / square), new
        return delta

    def descended(self, steps: int, rate: float) -> Any:
        """Adam from 0 on projected gradients, as in the authors' code."""
        delta = first = second = self.merged * 0.0
        for step in range(1, steps + 1):
            gradient = self._normal(self._residuals(delta)) * (-2.0 * self.total)
            first = first * _BETA_1 + gradient * (1.0 - _BETA_1)
            second = second * _BETA_2 + gradient * gradient * (1.0 - _BETA_2)
            length = self.linalg.sqrt(second / (1.0 - _BETA_2**step)) + _EPSILON
            delta = delta - first / (1.0 - _BETA_1**step) / length * rate
        return delta

    def _residuals(self, delta: Any) -> list[Any]:
        goal = self.merged + delta * self.total
        return [self._inner(t, t - goal) for t in self.tasks]

    def _inner(self, a: Any, b: Any) -> Any:
        """Inner products, one per row, or one; they broadcast against the matrices."""
        products = (a * b).sum(1)[:, None]
        return products if self.rows else products.sum(0)[:, None]

    def _normal(self, numbers: Sequence[Any]) -> Any:
        """sum_j numbers_j tau_j, projected."""
        total = self.merged * 0.0
        for number, task in zip(numbers, self.tasks, strict=True):
            total = total + task * number
        return self.outside(total)
