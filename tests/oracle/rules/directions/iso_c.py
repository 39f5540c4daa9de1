"""Iso-C (Marczak et al., ICML 2025, arXiv:2502.04959).

    sum_i w_i tau_i = U S V^T;   theta = theta_0 + lambda mean(S) U V^T

over the directions that the sum has: those above rank_tolerance. The authors' code takes all (reference) and leaves
text_projection to the average. FusionBench reports lambda 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.spectra import directions
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "weight": 1.0, "lambda": 1.0},
    "reference": {"rank_tolerance": 0.0, "exempt": "linear.text_projection"},
    "fusionbench": {"lambda": 1.5},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench"},
    {"weight": [1.0, -0.5, 2.0], "lambda": 0.4},
    {"preset": "reference"},
    {"rank_tolerance": 0.5},
    *RULE_VARIANTS,
    *PATHS,
]
# One decomposition, but every direction counts alike: errors of the weak ones are not weighted down.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def iso_c(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum's directions, all with the same strength."""
    how = with_preset(parameters, PRESETS)

    def isotropic(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        total = sum(w * m for w, m in zip(weights, matrices, strict=True))
        found = directions(total, tolerance=how["rank_tolerance"])
        return found.left @ found.right * found.values.mean() if found.values.size else total

    return merged_by_matrix(family, how, isotropic)
