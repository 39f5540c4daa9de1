"""CART (Choi et al., 2024, arXiv:2412.12153).

    D = mean of tau_i;   theta = theta_0 + D + lambda sum_i w_i (the r strongest triplets of tau_i - D)

Whatever is no matrix: the mean, the sum, or nothing.
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
    unmerged,
)
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "weight": 1.0, "rank": None, "rank_share": 0.16, "lambda": 1.0},
    "adarank": {"rank_share": 0.16, "lambda": 2.3},
}
VARIANTS: list[dict[str, Any]] = [
    {"rank": 2},
    {},
    {"rank_share": 0.5, "weight": [1.0, 0.25, -2.0], "lambda": 0.7},
    {"preset": "adarank"},
    {"rank": 1000, "weight": [1.0, 0.0, 2.0]},
    *({"rank": 2, **variant} for variant in RULE_VARIANTS),
    {"rank": 1000, "rank_tolerance": 0.3},
    *({"rank": 3, **path} for path in PATHS),
]
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def cart(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The average and low-rank parts around it."""
    how = with_preset(parameters, PRESETS)
    merged = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        if not is_matrix(place, how):
            merged[name] = base + unmerged(deltas, [1.0] * len(deltas), place, how)
            continue
        mean = np.mean(deltas, axis=0)
        change = mean
        for weight, delta in zip(each(how, "weight", name, len(deltas)), deltas, strict=True):
            own = put_together(
                [_low_rank(m, how) for m in cut(delta - mean, place, how)], place, how
            )
            change = change + shared(how, "lambda", name) * weight * own
        merged[name] = base + change
    return merged


def _low_rank(matrix: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    rank = how["rank"] or max(1, count(how["rank_share"], min(matrix.shape)))
    return directions(matrix, rank, how["rank_tolerance"]).matrix()
