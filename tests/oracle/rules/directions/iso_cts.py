"""Iso-CTS (Marczak et al., ICML 2025, arXiv:2502.04959).

    r = min(m, n),  s = round((r - floor(f r)) / N), at most floor(r / N)
    U_c, S_c, V_c   the r - N s strongest directions of M = sum_i w_i tau_i
    U_i, S_i, V_i   the s strongest directions of (I - U_c U_c^T) w_i tau_i
    theta = theta_0 + lambda mean(all S) polar([U_1 .. U_N U_c]) polar([V_1 .. V_N V_c])^T

f is common_share; halves round to even, as Python's round does in the authors' code, which leaves text_projection to
the average (reference).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.order import count
from ..shared.spectra import REAL, Directions, directions, polar
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "weight": 1.0, "common_share": 0.8, "lambda": 1.0},
    "reference": {"rank_tolerance": 0.0, "exempt": "linear.text_projection"},
    "fusionbench": {"lambda": 1.5},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench"},
    {"common_share": 0.5, "weight": [1.0, -0.5, 2.0], "lambda": 0.4},
    {"preset": "reference"},
    {"common_share": 1.0},
    {"common_share": 0.0},
    *RULE_VARIANTS,
    *PATHS,
]
# Three decompositions, with every direction counting alike.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def iso_cts(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Common and specific directions, made orthogonal, all with the same strength."""
    how = with_preset(parameters, PRESETS)
    tolerance = how["rank_tolerance"]

    def isotropic(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        full, n = min(matrices[0].shape), len(matrices)
        own = min(round((full - count(how["common_share"], full)) / n), full // n)
        tasks = [w * m for w, m in zip(weights, matrices, strict=True)]
        common = directions(np.sum(tasks, axis=0), full - n * own, tolerance)
        found = [*(_specific(task, common, own, tolerance) for task in tasks), common]
        values = np.concatenate([f.values for f in found])
        if not values.size:
            return np.sum(tasks, axis=0)
        left = polar(np.hstack([f.left for f in found]), tolerance)
        right = polar(np.vstack([f.right for f in found]).T, tolerance)
        return values.mean() * left @ right.T

    return merged_by_matrix(family, how, isotropic)


def _specific(
    task: np.ndarray, common: Directions, rank: int, tolerance: float | None
) -> Directions:
    """What a task has beside the common directions, where that is more than rounding of the task."""
    found = directions(task - common.left @ (common.left.T @ task), rank, tolerance)
    return found.first(int((found.values > REAL * np.linalg.norm(task)).sum()))
