"""RegMean (Jin et al., ICLR 2023, arXiv:2212.09849).

    W = A + (sum_i w_i (W_i - A) G~_i) (sum_i w_i G~_i + rho tr / n I)^+,   A = sum_i w_i W_i / sum_i w_i
    G~_i = G_i = X_i^T X_i with off-diagonal elements times alpha

with (outputs, inputs) weights, and tr / n the mean eigenvalue of sum_i w_i G~_i, sum_i w_i = 1. Directions that no
input reached stay at A, the authors' inverse having no value there. Stacks take one Gram matrix each or share one,
kernels are (first axis, all others), and tensors without a Gram matrix are A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import RULES, cut, put_together
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "gram"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "kernels": "matrix",
        "weight": 1.0,
        "alpha": 0.9,
        "ridge": 0.0,
        "rank_tolerance": None,
    },
    "fusionbench": {"alpha": 0.95},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench"},
    {"alpha": 1.0},
    {"alpha": 0.0},
    {"alpha": 0.5, "weight": [1.0, 0.0, 3.0]},
    {"alpha": 1.0, "ridge": 0.01},
    {"ridge": 10.0, "weight": [0.5, 0.25, 2.0]},
    {"alpha": 1.0, "rank_tolerance": 0.2},
    {"orientation": "auto", "alpha": 0.1},
]
# Gram matrices of fewer samples than inputs are solved down to eigenvalues of 1e-3 of the largest.
TOLERANCE = 1e-9
STRUCTURED = 3
# Eigenvalues of Gram matrices below this share of the largest are rounding.
_REAL = 1e-12


def regmean(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The regression means."""
    how = with_preset(parameters, PRESETS)
    grams = family.statistics
    merged = {}
    for name in family.base:
        place, own = family.places[name], [expert[name] for expert in family.experts]
        given = each(how, "weight", name, len(own))
        weights = [w / sum(given) for w in given]
        if name not in grams[0]:
            merged[name] = sum(w * x for w, x in zip(weights, own, strict=True))
            continue
        stacks = [cut(expert, place, how) for expert in own]
        blocks = []
        for i, matrices in enumerate(zip(*stacks, strict=True)):
            inputs = [g[name] if g[name].ndim == 2 else g[name][i] for g in grams]
            blocks.append(_regression(matrices, [_damped(g, how) for g in inputs], weights, how))
        merged[name] = put_together(blocks, place, how)
    return merged


def _damped(gram: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    return np.where(np.eye(len(gram)) == 1.0, gram, how["alpha"] * gram)


def _regression(
    matrices: Sequence[np.ndarray],
    grams: Sequence[np.ndarray],
    weights: Sequence[float],
    how: Mapping[str, Any],
) -> np.ndarray:
    mean = sum(w * m for w, m in zip(weights, matrices, strict=True))
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    wanted = sum(w * (m - mean) @ g for w, m, g in zip(weights, matrices, grams, strict=True))
    total = total + how["ridge"] * np.trace(total) / len(total) * np.eye(len(total))
    values, vectors = np.linalg.eigh(total)
    tolerance = how["rank_tolerance"]
    share = _REAL if tolerance is None else max(tolerance**2, _REAL)
    real = values > share * values[-1]
    return mean + (wanted @ vectors[:, real] / values[real]) @ vectors[:, real].T
