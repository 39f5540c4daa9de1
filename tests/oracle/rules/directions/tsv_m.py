"""TSV-Merge (Gargiulo et al., CVPR 2025, arXiv:2412.00081).

    tau_i = U_i S_i V_i^T, of which the k strongest triplets are kept;  k = floor(min(m, n) / N), at least 1
    theta = theta_0 + lambda polar([U_1 .. U_N]) diag(w_1 S_1 .. w_N S_N) polar([V_1 .. V_N])^T

The authors' code keeps no triplet where k is 0 (reference), or all of them in its lossless form; either leaves
text_projection to the average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.order import count
from ..shared.spectra import whitened
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "weight": 1.0, "rank_share": None, "smallest_rank": 1, "lambda": 1.0},
    "reference": {"smallest_rank": 0, "exempt": "linear.text_projection"},
    "lossless": {"rank_share": 1.0, "exempt": "linear.text_projection"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [1.0, 0.0, -0.5]},
    {"rank_share": 0.5, "weight": [0.5, 2.0, 1.0]},
    {"preset": "lossless"},
    {"preset": "reference", "lambda": 0.8},
    {"rank_share": 0.0, "smallest_rank": 2},
    *RULE_VARIANTS,
    *PATHS,
]
# Two decompositions of float64 matrices whose directions are far from dependent.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def tsv_m(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of leading directions that were made orthogonal."""
    how = with_preset(parameters, PRESETS)

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        smaller, share = min(matrices[0].shape), how["rank_share"]
        wanted = smaller // len(matrices) if share is None else count(share, smaller)
        rank = max(how["smallest_rank"], wanted)
        return whitened(matrices, [rank] * len(matrices), weights, how["rank_tolerance"])

    return merged_by_matrix(family, how, merged)
