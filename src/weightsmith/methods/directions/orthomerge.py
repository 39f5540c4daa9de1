"""OrthoMerge: experts as rotations of the base, averaged as rotations, and what the rotations leave added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, whole, without_gradient
from weightsmith.methods.directions.iso import length_of
from weightsmith.methods.parts.gram import solve, total
from weightsmith.methods.parts.matrices import in_float64, others_parameter
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, SpectralRules, constant
from weightsmith.methods.parts.task_vectors import task_vectors

_PRECISION = 2.3e-16


@method(
    "orthomerge",
    title="OrthoMerge (rotations of the base)",
    paper="OrthoMerge, 2026, arXiv:2602.05943",
    base=Base.REQUIRED,
    presets={"global": {"rows": "all"}},
    about_presets={"global": "the authors' OrthoMerge-G; the defaults are OrthoMerge-C"},
    cost="O(N (m n^2 + n^3))",
)
@dataclass(frozen=True, slots=True)
class OrthoMerge(SpectralRules):
    """The mean of the rotations that turn the base towards its experts, and a share of all that no rotation reaches.

        X_i = theta_0 + tau_i in the rows of tau_i that point against those of sum_j tau_j, theta_0 in others
        R_i = the rotation with theta_0 R_i nearest to X_i: U V^T of theta_0^T X_i
        A_i = (R_i + I)^-1 (R_i - I), skew;   A = (sum |w_i| ||A_i|| / sum |w_i|) sum w_i A_i / ||sum w_i A_i||
        R = (I - A)^-1 (I + A);   theta = theta_0 R + lambda sum_i w_i (theta_i - theta_0 R_i)

    Matrices are (outputs, inputs) and rotated along their inputs, so that rows keep their lengths and angles to each
    other. With `rows: all` X_i is the expert (preset global). lambda is 0.2 in the authors' code, which adds residuals
    up as here; its forms that merge them by TIES or TSV-M are not. Tensors that are no matrix have no rotation and are
    added with lambda (others: sum). An expert without a row to turn has R_i = I.

    Inputs that theta_0 or X_i has no direction for are turned as little as can be: U V^T is arbitrary there, and so is
    what the code makes of matrices with fewer outputs than inputs. Half turns, which have no A_i, are left out. Where
    no A is left, R = I. Rows are chosen one by one, so that a result jumps where a row begins to point against the
    others. O(N (m n^2 + n^3)) time for n inputs; N + 2 matrices and N + 6 of n x n in float64. Raises NonFiniteError
    for a matrix with NaN or infinities.
    """

    others: str = others_parameter("sum")
    weight: tuple[float, ...] = per_expert(1.0, doc="how much each expert counts")
    rows: str = shared(
        "conflicting",
        choices=("conflicting", "all"),
        doc="rows that rotations are fitted to: those that point against the sum of the task vectors, or all",
    )
    scale: float = shared(0.2, key="lambda", doc="coefficient of what the rotations leave")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Rotate the base and add what is left."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        function = RotatedExperts(self.weight, self.rows == "all", self.scale, self.how(site))
        return base + whole(ByMatrix(function, view, site.name), *deltas, base)


@dataclass(frozen=True, slots=True)
class RotatedExperts:
    """Task vectors of one matrix, and the base -> what changes of the base."""

    weights: tuple[float, ...]
    takes_all: bool
    scale: float
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *tasks, base = [in_float64(linalg, m) for m in matrices]
        inputs = base.shape[1]
        identity = in_float64(linalg, linalg.eye(inputs))
        if hasattr(base, "device") and hasattr(identity, "to"):
            identity = identity.to(base.device)
        together = without_gradient(total(tasks))
        rotations = [self.rotation(linalg, base, t, together, identity) for t in tasks]
        shares = list(zip(self.weights, tasks, rotations, strict=True))
        # theta_0 (R_i - I): nothing where the expert has no rotation.
        left = total([w * (t if r is None else t - base @ (r - identity)) for w, t, r in shares])
        turned = self.mean(linalg, [(w, r) for w, _, r in shares], identity)
        change = left * self.scale
        return change if turned is None else change + base @ turned

    def rotation(self, linalg: Any, base: Any, task: Any, together: Any, identity: Any) -> Any:
        """R_i, or None for I."""
        target = task
        if not self.takes_all:
            against = (without_gradient(task) * together).sum(1) < 0.0
            target = linalg.where(against[:, None], task, 0.0)
        if not bool((target != 0).any()):
            return None
        found = self.how.spectrum(linalg, base.T @ (base + target))
        missing = identity.shape[0] - found.rank
        if not missing:
            return found.polar()
        outside = identity - found.left @ found.left.T
        remaining = outside @ (identity - found.right.T @ found.right)
        return found.polar() + self.how.spectrum(linalg, remaining, missing).polar()

    def mean(self, linalg: Any, rotations: Sequence[tuple[float, Any]], identity: Any) -> Any:
        """R - I of the mean rotation, or None where it is 0."""
        skews = [
            (weight, self.skew(linalg, rotation, identity))
            for weight, rotation in rotations
            if rotation is not None and weight
        ]
        if not skews:
            return None
        summed = total([weight * skew for weight, skew in skews])
        length = length_of(linalg, summed)
        angle = total([abs(weight) * length_of(linalg, skew) for weight, skew in skews])
        if not constant(length) > 8.0 * identity.shape[0] * _PRECISION * constant(angle):
            return None
        count = sum(abs(weight) for weight, _ in rotations)
        mean = summed * (angle / count / length)
        # (I - A)^-1 (I + A) - I = 2 (I - A)^-1 A.
        return 2.0 * linalg.linalg.solve(identity - mean, mean)

    def skew(self, linalg: Any, rotation: Any, identity: Any) -> Any:
        """A_i = (R_i - R_i^T) (2 I + R_i + R_i^T)^-1, which is the formula's for a rotation."""
        symmetric = 2.0 * identity + rotation + rotation.T
        cutoff = 8 * identity.shape[0] * _PRECISION
        return solve(
            linalg, rotation - rotation.T, symmetric, cutoff, floor=cutoff, tensor=self.how.tensor
        )
