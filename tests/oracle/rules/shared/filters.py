"""WUDI with a filter on the eigenvalues l of C = V diag(l) V^T (Wei et al., ICLR 2026, arXiv:2505.19892).

T = T_0 + (T* - T_0) V diag(f(l)) V^T = T_0 + (D - T_0 C) V diag(f(l) / l) V^T;   theta = theta_0 + lambda T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .interference import interference
from .matrices import RULES, merged_by_matrix

if TYPE_CHECKING:
    from ...families import Family

DEFAULTS: dict[str, Any] = {
    **RULES,
    "embeddings": "average",
    "weight": 1.0,
    "start": "sum",
    "lambda": 1.0,
}


class Seen(NamedTuple):
    """What a filter goes by.

    Eigenvalues, falling; ||T_0 v||^2 and ||D v||^2 in their directions v; outputs and inputs of the matrix; rows of all
    R_i.
    """

    values: np.ndarray
    starts: np.ndarray
    wanted: np.ndarray
    shape: tuple[int, int]
    rows: int


def filtered(
    family: Family, how: Mapping[str, Any], gains: Callable[[Seen], np.ndarray]
) -> dict[str, np.ndarray]:
    """The merged model; `gains` gives f of every eigenvalue."""

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        tasks = [w * m for w, m in zip(weights, matrices, strict=True)]
        problem = interference(tasks, how["start"])
        if not problem.factors:
            return problem.start
        values, vectors = problem.eigen(how["rank_tolerance"])
        images = problem.residual() @ vectors.T
        starts = problem.start @ vectors.T
        wanted = images + starts * values
        lengths = (starts**2).sum(0), (wanted**2).sum(0)
        rows = sum(len(factor) for factor in problem.factors)
        f = gains(Seen(values, *lengths, matrices[0].shape, rows))
        return problem.start + (images * (f / values)) @ vectors

    return merged_by_matrix(family, how, merged)


def leading(count: int, values: np.ndarray) -> np.ndarray:
    """1 of the `count` largest, else 0."""
    return np.asarray(np.arange(len(values)) < count, dtype=float)
