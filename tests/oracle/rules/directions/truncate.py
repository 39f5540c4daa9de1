"""Task vectors of low rank (Eckart and Young, 1936; Gargiulo et al., CVPR 2025, arXiv:2412.00081).

    tau_i = U S V^T;  tau^_i = its r strongest triplets, r = rank, or max(1, floor(rank_share min(m, n)))
    theta = theta_0 + lambda sum_i w_i tau^_i / sum_i w_i

With nuclear_share r is the least number of values that reach this share of their sum; rescale: nuclear multiplies those
kept by the sum of all over theirs (STAR, NAACL 2025, arXiv:2502.10339).

Tensors that are no matrix: the same average of whole task vectors, or their sum with weights as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULE_VARIANTS,
    RULES,
    cut,
    is_matrix,
    put_together,
    rule_of,
)
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "weight": 1.0,
        "rank": None,
        "rank_share": 0.1,
        "normalize": True,
        "lambda": 1.0,
        "nuclear_share": None,
        "rescale": "none",
    },
    "star": {"nuclear_share": 0.4, "rescale": "nuclear"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rank": 2, "lambda": 0.7},
    {"rank_share": 0.5, "weight": [1.0, 0.25, 2.0]},
    {"rank": 3, "normalize": False, "weight": [0.5, -0.25, 1.0]},
    {"rank": 1000},
    {"preset": "star"},
    {"nuclear_share": 0.7, "weight": [1.0, 0.25, 2.0], "rank": 1},
    {"rank": 2, "rescale": "nuclear", "rank_tolerance": 0.2},
    {"nuclear_share": 0.0},
    {"nuclear_share": 1.0, "rescale": "nuclear"},
    *RULE_VARIANTS,
    {"kernels": "matrix", "fused": "split", "rank_share": 0.5},
    {"fused": "split", "rank": 7},
    {"rank": 1000, "rank_tolerance": 0.3},
    *({"rank": 3, **path} for path in PATHS),
]
# Products and sums of a few dozen float64 numbers, over the gap between neighbouring singular values.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def truncate(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The average of task vectors of low rank."""
    how = with_preset(parameters, PRESETS)
    merged = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        weights = np.array(each(how, "weight", name, len(deltas)))
        shares = weights / weights.sum() if how["normalize"] else weights
        if is_matrix(place, how):
            deltas = [
                put_together([_low_rank(m, how) for m in cut(delta, place, how)], place, how)
                for delta in deltas
            ]
        elif (rule := rule_of(place, how)) != "average":
            shares = weights if rule == "sum" else 0.0 * weights
        change = sum(share * delta for share, delta in zip(shares, deltas, strict=True))
        merged[name] = base + shared(how, "lambda", name) * change
    return merged


def _low_rank(matrix: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    found = directions(matrix, tolerance=how["rank_tolerance"])
    rank = how["rank"] or max(1, count(how["rank_share"], min(matrix.shape)))
    if how["nuclear_share"] is not None and found.values.size:
        reached = np.cumsum(found.values) / found.values.sum() >= how["nuclear_share"] - 1e-12
        rank = int(np.argmax(reached)) + 1
    kept = found.first(rank)
    if how["rescale"] == "none" or not kept.values.size or rank >= min(matrix.shape):
        return kept.matrix()
    return kept.matrix() * (found.values.sum() / kept.values.sum())
