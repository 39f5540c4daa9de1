"""WUDI-Merging (Cheng et al., ICML 2025, arXiv:2503.08099).

    L(T) = sum_i ||(T - tau_i) tau_i^T||^2 / ||tau_i||^2;   theta = theta_0 + lambda T

T is the minimiser of least norm (solver closed), or what Adam makes of sum_i tau_i in 300 steps of 1e-5 (reference).
Embeddings, heads and tensors that are no matrix are averaged; the authors' vision code takes the matrices of attention
and of MLPs alone and leaves all else at the base (original).

With gram: plain the problem is sum_i w_i ||(T - tau_i) tau_i^T||^2, and averages are weighted means (ACTMat,
arXiv:2604.01329).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.interference import Interference, adam, interference, started
from ..shared.matrices import EXACT_RANKS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "embeddings": "average",
        "weight": 1.0,
        "solver": "closed",
        "steps": 300,
        "learning_rate": 1e-5,
        "lambda": 1.0,
        "gram": "unit",
    },
    "actmat": {"gram": "plain"},
    "reference": {"solver": "adam"},
    "original": {
        "solver": "adam",
        "others": "base",
        "embeddings": "base",
        "exempt": "linear other",
    },
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "reference"},
    {"solver": "adam", "steps": 25, "learning_rate": 1e-3, "weight": [1.0, 0.5, 2.0]},
    {"weight": [1.0, 0.0, -0.5], "lambda": 0.7},
    {"preset": "original", "steps": 40},
    {"rank_tolerance": 0.3},
    {"rank_tolerance": 0.7, "weight": [1.0, 0.5, 2.0]},
    {"embeddings": "spectral"},
    {"preset": "actmat"},
    {"preset": "actmat", "weight": [1.0, 0.0, 3.0], "lambda": 0.7, "embeddings": "spectral"},
    {"preset": "actmat", "weight": [1.0, 0.5, 3.0], "others": "sum", "rank_tolerance": 0.3},
    {"preset": "actmat", "solver": "adam", "steps": 5, "learning_rate": 1e-3},
    *RULE_VARIANTS,
]
# The minimiser divides by eigenvalues of C; on families of three experts the least is some 1e-3 of the largest.
TOLERANCE = 1e-8
STRUCTURED = 3
EXACT = EXACT_RANKS


def wudi(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The least interfering task vectors."""
    how = with_preset(parameters, PRESETS)

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        tasks = [w * m for w, m in zip(weights, matrices, strict=True)]
        if how["solver"] == "adam":
            return adam(interference(tasks, "sum"), how["steps"], how["learning_rate"])
        return interference(tasks, "zero").minimum(how["rank_tolerance"])

    if how["gram"] == "plain":
        return merged_by_matrix(family, how, _by_plain_grams(how), is_mean=True)
    return merged_by_matrix(family, how, merged)


def _by_plain_grams(how: dict[str, Any]) -> Callable[[list[np.ndarray], list[float]], np.ndarray]:
    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        tasks = [m for m, w in zip(matrices, weights, strict=True) if w]
        longest = max(np.linalg.norm(m) for m in matrices)
        if not longest or not tasks:
            return np.zeros_like(matrices[0])
        roots = [np.sqrt(w) / longest for w in weights if w]
        start = started(tasks, "sum" if how["solver"] == "adam" else "zero")
        factors = [r * m for r, m in zip(roots, tasks, strict=True)]
        problem = Interference(start, tasks, factors)
        if how["solver"] == "adam":
            return adam(problem, how["steps"], how["learning_rate"])
        return problem.minimum(how["rank_tolerance"])

    return merged
