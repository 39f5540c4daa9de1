"""DOGE: a shared shift of all task vectors, outside the subspace they share, that closes the gap to every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightsmith.errors import GradientError
from weightsmith.graph import (
    Site,
    Spectrum,
    Value,
    above,
    add_all,
    apply,
    arbitrary,
    differentiable,
    dot,
    falling,
    floor_of_share,
    largest_share,
    scalars,
    where,
    whole,
    without_gradient,
)
from weightsmith.methods.directions.iso import frobenius, length_of
from weightsmith.methods.parts.gram import reciprocal, roots, rounding_of_sum
from weightsmith.methods.parts.least_squares import LinearOperator
from weightsmith.methods.parts.matrices import (
    MatrixView,
    embeddings_parameter,
    in_dtype_of,
    in_float64,
    others_parameter,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.rounding import Rounding, arithmetic_of
from weightsmith.methods.parts.span import root
from weightsmith.methods.parts.spectra import Decomposition, LeadingRules, constant, require_finite
from weightsmith.methods.parts.task_vectors import task_vectors

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
# Share of the largest singular value within which two count as equal. Directions by Gram matrices, which are those of
# values above 5e-5, are orthonormal to some 1e-7.
_ALIKE = 1e-6


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
    nothing has lambda_i = 0.
    Directions that the tasks share alike, as all of a single expert's and of copies are, are taken in the order of
    their strength in the norm-equalised task vectors; those that are equally strong, too, lie in the subspace together
    or not at all. O(N m n min(m, n)) time; 2 N + 4 matrices in float64.
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
    steps: int = shared(
        400, low=0, high=100_000, doc="steps of the descent, or of the conjugate gradients"
    )
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
        lengths = [length_of(linalg, in_float64(linalg, a)) for a in arrays[:-1]]
        factors = [self.eta / length if length > 0.0 else 0.0 for length in lengths]
        groups = zip(*(self.view.split(a) for a in arrays), strict=True)
        shifts = [
            in_dtype_of(arrays[0], self._delta(linalg, list(matrices), factors))
            for matrices in groups
        ]
        return self.view.join(linalg, shifts)

    def _delta(self, linalg: Any, matrices: list[Any], factors: list[Any]) -> Any:
        *matrices, base = matrices
        tasks = [in_float64(linalg, m) for m in matrices]
        total = sum(factors)
        scaled = [t * f for t, f in zip(tasks, factors, strict=True)]
        live = [t for t, f in zip(tasks, factors, strict=True) if constant(f)]
        if not live:
            return tasks[0] * 0.0
        merged = live[0] * 0.0
        for task in scaled:
            merged = merged + task
        roundings = self.how.roundings(linalg, base, matrices)
        basis, is_whole = self._shared_basis(linalg, matrices, scaled, roundings)
        problem = Surrogate(linalg, live, merged, total, self.rows, basis, self.tensor)
        floors = [
            max(r.square, arithmetic_of(t.shape, frobenius(linalg, t)) ** 2)
            for r, t in zip(roundings, tasks, strict=True)
        ]
        left = [constant((problem.outside(t) ** 2).sum()) for t in tasks]
        if any(floors) and all(s <= floor for s, floor in zip(left, floors, strict=True)):
            return merged * 0.0
        shift = self._minimiser(problem, self.how.cutoff(linalg, matrices[0]), max(floors))
        return shift if is_whole else arbitrary(shift, self.tensor)

    def _minimiser(self, problem: Surrogate, cutoff: float, floor: float) -> Any:
        if self.descend:
            return problem.descended(self.steps, self.rate)
        return (
            problem.conjugate_gradients(self.steps) if self.rows else problem.closed(cutoff, floor)
        )

    def _shared_basis(
        self,
        linalg: Any,
        matrices: list[Any],
        scaled: list[Any],
        roundings: Sequence[Rounding],
    ) -> tuple[Any, bool]:
        """U_k: the leading left directions of the tasks' own, those of rounding left out; whether these are k.

        Directions that are shared alike, as all of a single task are, are taken in the order of their strength in the
        task vectors `scaled` to one length. Those that are equally strong, too, stay outside if there is no room for
        all of them.
        """
        smaller = min(matrices[0].shape)
        cutoff = self.how.cutoff(linalg, matrices[0])
        own = max(1, smaller // len(matrices))
        spectra = [
            self.how.spectrum(linalg, matrix, own, floor=rounding.strength)
            for matrix, rounding in zip(matrices, roundings, strict=True)
        ]
        joined = linalg.concatenate([s.left for s in spectra], 1)
        wanted = floor_of_share(1.0 / self.subspace, smaller)
        found = self.how.spectrum(linalg, joined, tolerance=cutoff)
        first, last = _alike(found.values, wanted)
        if last <= wanted:
            return found.leading(wanted).left, True
        tied = found.only(slice(first, last)).left
        strengths = self.how.spectrum(
            linalg, linalg.concatenate([tied.T @ s for s in scaled], 1), tolerance=cutoff
        )
        room = wanted - first
        start, end = _alike(strengths.values, room)
        is_whole = end <= room
        strongest = tied @ strengths.leading(room if is_whole else start).left
        return linalg.concatenate([found.leading(first).left, strongest], 1), is_whole


def _alike(values: Any, place: int) -> tuple[int, int]:
    """First and last (excluded) of the falling values that are equal to those on both sides of a place between two."""
    numbers = without_gradient(values).tolist()
    first = last = min(place, len(numbers))
    least = _ALIKE * numbers[0] if numbers else 0.0
    if 0 < place < len(numbers) and numbers[place - 1] - numbers[place] <= least:
        first, last = place - 1, place + 1
        while first > 0 and numbers[first - 1] - numbers[first] <= least:
            first -= 1
        while last < len(numbers) and numbers[last - 1] - numbers[last] <= least:
            last += 1
    return first, last


@dataclass(frozen=True, slots=True)
class Surrogate:
    """sum_j <tau_j, c_j - s Delta>^2 with c_j = tau_j - sum_i lambda_i tau_i, over Delta outside of a basis."""

    linalg: Any
    tasks: list[Any]
    merged: Any
    total: Any
    rows: bool
    basis: Any
    tensor: str = ""

    def outside(self, matrix: Any) -> Any:
        """(1 - P) matrix."""
        return matrix - self.basis @ (self.basis.T @ matrix)

    def loss(self, delta: Any) -> float:
        """The objective."""
        return sum(constant((r * r).sum()) for r in self._residuals(delta))

    def closed(self, cutoff: float, floor: float = 0.0) -> Any:
        """The minimiser of least norm for inner products of whole matrices.

        Combinations of the free parts of which rounding has a squared length of `floor` have none.
        """
        linalg = self.linalg
        free = [self.outside(t) for t in self.tasks]
        gram = linalg.stack([linalg.stack([(a * b).sum() for b in free]) for a in free])
        wanted = linalg.stack([(t * (t - self.merged)).sum() for t in self.tasks]) / self.total
        eigen = linalg.linalg.eigh(without_gradient(gram))
        values, vectors = falling(linalg, eigen[0], eigen[1], None)
        largest = max(constant((t * t).sum()) for t in self.tasks)
        known = int((values > max(largest * cutoff, floor)).sum())
        found = differentiable(
            gram, Spectrum(vectors, values, vectors.T), slice(known), self.tensor
        )
        weights = (found.through(wanted[None] @ found.left, reciprocal) @ found.left.T)[0]
        delta = free[0] * weights[0]
        for matrix, weight in zip(free[1:], weights[1:], strict=True):
            delta = delta + matrix * weight
        return delta

    def conjugate_gradients(self, steps: int) -> Any:
        """The minimiser of least norm for inner products of rows, by conjugate gradients on the normal equations."""
        plain = self._plain()
        (delta,), is_exact = plain.equations.solution(plain.wanted, steps)
        if plain is self:
            return delta
        return self._moving(plain, delta, steps, is_exact)

    def descended(self, steps: int, rate: float) -> Any:
        """Adam from 0 on projected gradients, as in the authors' code."""
        delta = first = second = self.merged * 0.0
        residuals = self._residuals(delta)
        pulls = [t * r for t, r in zip(self.tasks, residuals, strict=True)]
        # Adam would make steps of full size out of the rounding of a gradient of 0.
        if constant(abs(self._normal(residuals)).max()) <= rounding_of_sum(pulls):
            return delta
        for step in range(1, steps + 1):
            gradient = self._normal(self._residuals(delta)) * (-2.0 * self.total)
            first = first * _BETA_1 + gradient * (1.0 - _BETA_1)
            second = second * _BETA_2 + gradient * gradient * (1.0 - _BETA_2)
            length = roots(self.linalg, second / (1.0 - _BETA_2**step)) + _EPSILON
            delta = delta - first / (1.0 - _BETA_1**step) / length * rate
        return delta

    @property
    def equations(self) -> LinearOperator:
        """Delta -> the inner products <tau_j, Delta>, which are to be `wanted`."""
        return LinearOperator(
            lambda delta: [self._inner(t, self.outside(delta[0])) for t in self.tasks],
            lambda numbers: [self._normal(numbers)],
        )

    @property
    def wanted(self) -> list[Any]:
        """The inner products that a Delta without a loss has."""
        return [r / self.total for r in self._residuals(self.merged * 0.0)]

    def _plain(self) -> Surrogate:
        """The same problem as numbers; itself where no gradients are recorded."""
        if without_gradient(self.merged) is self.merged:
            return self
        return replace(
            self,
            tasks=[without_gradient(t) for t in self.tasks],
            merged=without_gradient(self.merged),
            total=without_gradient(self.total),
            basis=without_gradient(self.basis),
        )

    def _moving(self, plain: Surrogate, delta: Any, steps: int, is_exact: bool) -> Any:
        """Delta as it moves with the tasks, which A and w are made of: the derivative of A^+ w.

        d Delta = (A^T A)^+ d(A^T (w - A x)) + (1 - A^+ A) dA^T y      at x = Delta = A^T y, held fixed
        """
        from weightsmith.graph import implicit

        equations, most = plain.equations, max(steps, 4 * len(self.tasks) * len(delta))
        across, is_across = equations.transposed.solution([delta], most)

        def adjoint(for_delta: Any) -> tuple[Any, Any]:
            numbers, are_numbers = equations.transposed.solution([for_delta], most)
            (turned,), is_turned = equations.solution(numbers, most)
            if not (is_exact and is_across and are_numbers and is_turned):
                raise GradientError(
                    f"The merge of {self.tensor!r} has no gradient, because doge's conjugate gradients stop before "
                    "they have converged; raise `steps`, or take objective: layer."
                )
            return turned, for_delta - equations.backward(numbers)[0]

        gaps = zip(self.wanted, self.equations.forward([delta]), strict=True)
        residual = self._normal([w - image for w, image in gaps])
        return implicit(delta, adjoint, residual, self._normal(across))

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
