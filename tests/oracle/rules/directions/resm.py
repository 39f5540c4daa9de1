"""RESM, or R-TSVM (Yang et al., 2025, arXiv:2502.06876), in the project's reconstruction of it.

    omega_i = sum of |tau_i| above mu_i + outlier_sigma sigma_i, over sum |tau_i|, divided by the mean over tasks
    s_i = 1 - (sum |tau_i|)^2 / (m n sum tau_i^2)
    k_i = max(1, floor(min(m, n) (1 - s_i) / sum_j (1 - s_j)))            0 of a task that changed nothing
    theta = theta_0 + lambda TSV-Merge with ranks k_i and weights w_i omega_i

mu_i and sigma_i are mean and deviation of |tau_i|. Without outliers anywhere all omega_i are 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.spectra import whitened
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "weight": 1.0, "outlier_sigma": 3.0, "lambda": 1.0}
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"outlier_sigma": 1.0, "weight": [1.0, 0.5, 2.0], "lambda": 0.6},
    {"outlier_sigma": 100.0},
    *({"outlier_sigma": 1.0, **rules} for rules in RULE_VARIANTS),
    *({"outlier_sigma": 1.0, **path} for path in PATHS),
]
# As tsv_m: two decompositions of float64 matrices.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def resm(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """TSV-Merge with weights and ranks of each matrix."""
    how = with_preset(parameters, PRESETS)

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        outliers = [_outliers(np.abs(m), how["outlier_sigma"]) for m in matrices]
        mean = sum(outliers) / len(outliers)
        omegas = [o / mean if mean else 1.0 for o in outliers]
        dense = [_density(np.abs(m)) for m in matrices]
        smaller = min(matrices[0].shape)
        ranks = [max(1, math.floor(smaller * d / sum(dense))) if d else 0 for d in dense]
        scaled = [w * o for w, o in zip(weights, omegas, strict=True)]
        return whitened(matrices, ranks, scaled, how["rank_tolerance"])

    return merged_by_matrix(family, how, merged)


def _outliers(sizes: np.ndarray, sigma: float) -> float:
    """Their share of the L1 norm."""
    total = sizes.sum()
    return float(sizes[sizes > sizes.mean() + sigma * sizes.std()].sum() / total) if total else 0.0


def _density(sizes: np.ndarray) -> float:
    """1 - s_i."""
    square = sizes.size * (sizes**2).sum()
    return float(sizes.sum() ** 2 / square) if square else 0.0
