"""Singular directions, polar factors, and sums of directions that were made orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Singular values below this share of the largest are rounding of float64, whose own are near 1e-15.
REAL = 1e-10


class Directions(NamedTuple):
    """A ~ left diag(values) right, values falling, all of them real."""

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    def matrix(self) -> np.ndarray:
        """left diag(values) right."""
        return np.asarray((self.left * self.values) @ self.right)

    def first(self, count: int) -> Directions:
        """The strongest ones."""
        return Directions(self.left[:, :count], self.values[:count], self.right[:count])


def directions(
    matrix: np.ndarray, rank: int | None = None, tolerance: float | None = None
) -> Directions:
    """The directions stronger than a share of the strongest, at most `rank`; none of a zero matrix."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    share = REAL if tolerance is None else tolerance
    kept = int((values > share * values[0]).sum()) if values.size and values[0] > 0 else 0
    if kept == 0 and values.any():
        kept = 1
    return Directions(left, values, right).first(kept if rank is None else min(kept, rank))


def polar(matrix: np.ndarray, tolerance: float | None = None) -> np.ndarray:
    """A (A^T A)^(-1/2) over the directions that A has."""
    found = directions(matrix, tolerance=tolerance)
    return np.asarray(found.left @ found.right)


def whitened(
    matrices: Sequence[np.ndarray],
    ranks: Sequence[int],
    weights: Sequence[float],
    tolerance: float | None,
) -> np.ndarray:
    """polar([U_1 .. U_N]) diag(w_1 S_1 .. w_N S_N) polar([V_1 .. V_N])^T of the leading directions of each matrix."""
    kept = [
        (found, weight)
        for matrix, rank, weight in zip(matrices, ranks, weights, strict=True)
        if weight and (found := directions(matrix, rank, tolerance)).values.size
    ]
    if not kept:
        return np.zeros_like(matrices[0])
    left = np.hstack([found.left for found, _ in kept])
    values = np.concatenate([found.values * weight for found, weight in kept])
    right = np.vstack([found.right for found, _ in kept])
    return np.asarray((polar(left, tolerance) * values) @ polar(right.T, tolerance).T)
