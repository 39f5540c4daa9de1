"""ACE-Merging: least squares with covariances of inputs that the task vectors themselves give, and a refinement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, floor_of_share, whole
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import solve, total
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.named_roles import TEXT_PROJECTION
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, LeadingRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

# What the code adds to squared lengths and traces, which may be 0.
_TINY = 1e-12
_PRECISION = 2.3e-16


@method(
    "ace",
    title="ACE-Merging (adaptive covariance estimation)",
    paper="Xu et al., CVPR 2026, arXiv:2603.02945",
    base=Base.REQUIRED,
    presets={"reference": {"exempt": TEXT_PROJECTION, "embeddings": "spectral"}},
    about_presets={"reference": "every matrix but CLIP's text projection, as in the authors' code"},
    cost="O(N m n^2 + n^3)",
)
@dataclass(frozen=True, slots=True)
class AdaptiveCovariance(LeadingRules):
    """Task vectors weighed by estimates of their tasks' input covariances.

        c_i = tau_i - 1 mean over rows of tau_i,   S_i = c_i^T c_i,   E_i = epsilon I
        T = (sum_i c_i (S_i + E_i)) (sum_i (S_i + E_i) + 1 m^T)^-1,   m = column means of sum_i S_i
        theta = theta_0 + lambda T

    Rows of a task vector are samples of its inputs, S_i their covariance. Where tasks differ in size, gamma > threshold
    for gamma = var(log t) / mean(log t)^2, t_i = ||tau_i||^2, those of one matrix are brought to one trace, and the
    result is refined:

        S_i and E_i are divided by the trace of c_i^T c_i, m by the mean of the t_i
        R = sum_i tau_i (S_i - (1/N) sum_j (S_j + E_j)) + T = U s V^T;   k = floor(rank_share min(m, n))
        T grows by mean(s_1 .. s_k) U_k V_k^T

    The rules and epsilon 0.01, threshold 0.3 and rank_share 0.3 are those of the authors' code. There numbers are not
    free of units: epsilon is not relative to S_i, and gamma depends on the size of t_i. Its c_i in the first factor
    leave T without a mean over rows, but for the refinement; `targets: whole` has tau_i there. The inverse is taken of
    the symmetric part, the rank-one term by the formula of Sherman and Morrison, whose denominator is at least 1.
    Embeddings and heads (embeddings), tensors that are no matrix and matrices of one row, which have no covariance, are
    averaged (others). Where a matrix is brought to one trace depends on whole matrices, so that a result jumps where
    gamma passes the threshold. O(N m n^2 + n^3) time; N matrices and 2 of n x n in float64. Raises NonFiniteError for a
    matrix with NaN or infinities.
    """

    embeddings: str = shared(
        "average",
        choices=("spectral", "average", "sum", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )
    weight: tuple[float, ...] = strength_parameter()
    epsilon: float = shared(0.01, low=0.0, doc="what is added to the diagonal of each covariance")
    threshold: float = shared(
        0.3, low=0.0, doc="spread of sizes from which on traces are made equal and T is refined"
    )
    rank_share: float = shared(
        0.3, low=0.0, high=1.0, doc="share of the directions of R that the refinement takes"
    )
    targets: str = shared(
        "centred",
        choices=("centred", "whole"),
        doc="task vectors in the first factor: without their mean over rows, or whole",
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighed task vectors to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None or min(rows for rows, _ in view.blocks) < 2:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        function = Covariances(
            self.weight,
            self.epsilon,
            self.threshold,
            self.rank_share,
            self.targets == "centred",
            self.how(site),
        )
        return base + whole(ByMatrix(function, view, site.name), *deltas) * self.scale


@dataclass(frozen=True, slots=True)
class Covariances:
    """Task vectors of one matrix -> T."""

    weights: tuple[float, ...]
    epsilon: float
    threshold: float
    rank_share: float
    is_centred: bool
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        tasks = [in_float64(linalg, m) * w for m, w in zip(matrices, self.weights, strict=True)]
        squares = [frobenius(linalg, task) ** 2 for task in tasks]
        centred = [task - task.mean(0) for task in tasks]
        grams = [c.T @ c for c in centred]  # [inputs, inputs]
        if not self.differ(squares):
            shifts = [self.epsilon] * len(tasks)
            return self._solved(linalg, tasks, centred, grams, shifts, 1.0)
        traces = [(c * c).sum() + _TINY for c in centred]
        grams = [gram / trace for gram, trace in zip(grams, traces, strict=True)]
        shifts = [self.epsilon / trace for trace in traces]
        size = total([(task * task).sum() for task in tasks]) / len(tasks) + _TINY
        merged = self._solved(linalg, tasks, centred, grams, shifts, size)
        return self._refined(linalg, tasks, grams, shifts, merged)

    def differ(self, squares: Sequence[float]) -> bool:
        """Whether gamma is above the threshold."""
        if len(squares) < 2:
            return False
        logs = [math.log(square + _TINY) for square in squares]
        mean = sum(logs) / len(logs)
        variance = sum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
        return variance / (mean * mean + _TINY) > self.threshold

    def _solved(
        self,
        linalg: Any,
        tasks: Sequence[Any],
        centred: Sequence[Any],
        grams: Sequence[Any],
        shifts: Sequence[Any],
        size: Any,
    ) -> Any:
        """B (P + 1 m^T)^-1 = X - (X 1) y / (1 + y 1) of X = B P^-1 and y = m^T P^-1."""
        targets = centred if self.is_centred else tasks
        pairs = list(zip(targets, grams, shifts, strict=True))
        weighed = total([target @ gram + target * shift for target, gram, shift in pairs])
        gram = total(grams)
        means = (gram.mean(0) / size).reshape((1, -1))
        inputs = gram.shape[0]
        unit = in_float64(linalg, linalg.eye(inputs))
        unit = unit.to(gram.device) if hasattr(gram, "device") and hasattr(unit, "to") else unit
        symmetric = gram + unit * total(shifts)
        stacked = linalg.concatenate([weighed, means])  # [outputs + 1, inputs]
        solved = solve(linalg, stacked, symmetric, 8 * inputs * _PRECISION, tensor=self.how.tensor)
        found, row = solved[:-1], solved[-1:]
        return found - found.sum(1).reshape((-1, 1)) * row / (1.0 + row.sum())

    def _refined(
        self,
        linalg: Any,
        tasks: Sequence[Any],
        grams: Sequence[Any],
        shifts: Sequence[Any],
        merged: Any,
    ) -> Any:
        rank = floor_of_share(self.rank_share, min(merged.shape))
        if not rank:
            return merged
        mean, shift = total(grams) / len(grams), total(shifts) / len(shifts)
        pairs = zip(tasks, grams, strict=True)
        residual = merged + total([task @ (g - mean) - task * shift for task, g in pairs])
        found = self.how.spectrum(linalg, residual, rank)
        if not found.rank:
            return merged
        return merged + found.polar() * (found.values.sum() / found.rank)
