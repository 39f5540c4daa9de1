"""WUDI's problem (Cheng et al., ICML 2025, arXiv:2503.08099) and the descents that its authors stop early.

    L(T) = sum_i ||(T - t_i) R_i^T||^2;   gradient 2 (T C - D),  C = sum_i R_i^T R_i,  D = sum_i t_i R_i^T R_i

R_i is tau_i / ||tau_i|| in WUDI. A task that changed nothing has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Squared singular values of the stacked R_i below this share of the largest are rounding.
REAL = 1e-12


class Interference(NamedTuple):
    """T_0, the targets t_i and the factors R_i."""

    start: np.ndarray
    targets: Sequence[np.ndarray]
    factors: Sequence[np.ndarray]

    @property
    def rows(self) -> np.ndarray:
        """All R_i on top of each other: C = R^T R."""
        return np.vstack([np.zeros((1, self.start.shape[1])), *self.factors])

    def residual(self) -> np.ndarray:
        """D - T_0 C."""
        parts = [
            (t - self.start) @ r.T @ r for t, r in zip(self.targets, self.factors, strict=True)
        ]
        return np.asarray(sum(parts, np.zeros_like(self.start)))

    def gradient(self, at: np.ndarray) -> np.ndarray:
        """2 (T C - D)."""
        parts = [(at - t) @ r.T @ r for t, r in zip(self.targets, self.factors, strict=True)]
        return np.asarray(2.0 * sum(parts, np.zeros_like(self.start)))

    def eigen(self, tolerance: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of C, falling, and their vectors as rows, above the square of `tolerance` times the first."""
        _, roots, vectors = np.linalg.svd(self.rows, full_matrices=False)
        values = roots**2
        share = REAL if tolerance is None else max(tolerance**2, REAL)
        kept = int((values > share * values[0]).sum())
        return values[:kept], vectors[:kept]

    def minimum(self, tolerance: float | None = None) -> np.ndarray:
        """The T of least L that is nearest to T_0, from the least squares of (T - T_0) R^T = [(t_i - T_0) R_i^T]."""
        if not self.factors:
            return self.start
        wanted = [(t - self.start) @ r.T for t, r in zip(self.targets, self.factors, strict=True)]
        values, vectors = self.eigen(tolerance)
        inverse = (np.vstack(self.factors) @ vectors.T / values) @ vectors
        return np.asarray(self.start + np.hstack(wanted) @ inverse)


def started(deltas: Sequence[np.ndarray], start: str) -> np.ndarray:
    """The sum or mean of task vectors, or 0."""
    total = np.sum(deltas, axis=0)
    return np.asarray({"sum": total, "mean": total / len(deltas), "zero": 0.0 * total}[start])


def interference(deltas: Sequence[np.ndarray], start: str) -> Interference:
    """WUDI's own problem: t_i = tau_i and R_i = tau_i / ||tau_i||."""
    alive = [d for d in deltas if d.any()]
    return Interference(started(deltas, start), alive, [d / np.linalg.norm(d) for d in alive])


def adam(problem: Interference, steps: int, rate: float) -> np.ndarray:
    """Kingma and Ba, 2015, with betas .9 and .999 and epsilon 1e-8."""
    point = problem.start
    first = second = np.zeros_like(point)
    for step in range(1, steps + 1):
        gradient = problem.gradient(point)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
        point = point - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return np.asarray(point)


def with_momentum(problem: Interference, steps: int, rate: float) -> np.ndarray:
    """Gradient descent with momentum .9: v = .9 v + g, T = T - rate v."""
    point = problem.start
    velocity = np.zeros_like(point)
    for _ in range(steps):
        velocity = 0.9 * velocity + problem.gradient(point)
        point = point - rate * velocity
    return np.asarray(point)
