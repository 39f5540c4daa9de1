"""TSV-Compress (Gargiulo et al., CVPR 2025, arXiv:2412.00081): one task's share of the singular directions.

    theta = theta_0 + U_k S_k V_k^T,   k = max(1, floor(min(m, n) / tasks))

Tensors that are no matrix keep their whole change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.spectra import directions
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
PRESETS: dict[str, dict[str, Any]] = {"paper": {**RULES, "weight": 1.0, "tasks": 8, "lambda": 1.0}}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tasks": 3},
    {"tasks": 1},
    {"tasks": 2, "fused": "split"},
    *RULE_VARIANTS,
    *PATHS,
]
# One decomposition of a float64 matrix, over the gap between neighbouring singular values.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def tsv_c(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """One task's leading directions."""
    how = with_preset(parameters, PRESETS)

    def kept(matrices: list[np.ndarray], _: list[float]) -> np.ndarray:
        (matrix,) = matrices
        rank = max(1, min(matrix.shape) // how["tasks"])
        return directions(matrix, rank, how["rank_tolerance"]).matrix()

    return merged_by_matrix(family, how, kept)
