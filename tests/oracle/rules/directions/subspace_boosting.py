"""Subspace Boosting (Skorobogat et al., 2025, arXiv:2506.16506).

    tau = sum_i w_i tau_i = U S V^T;   theta = theta_0 + lambda U max(S, S_k) V^T

S_k is the first value with which the sum reaches the share beta of all, or the one at place floor(beta min(m, n)),
counted from 0 (share_of: count). Embeddings, heads and whatever is no matrix: as merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULES, cut, is_matrix, put_together, rule_of
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "merged",
        "embeddings": "merged",
        "fused": "split",
        "weight": 1.0,
        "beta": 0.01,
        "share_of": "sum",
        "lambda": 1.0,
    },
}
VARIANTS: list[dict[str, Any]] = [
    {"beta": 0.4},
    {},
    {"beta": 0.7, "weight": [1.0, -0.5, 2.0], "lambda": 0.6},
    {"beta": 1.0},
    {"beta": 0.3, "share_of": "count"},
    {"beta": 1.0, "share_of": "count"},
    {"beta": 0.5, "embeddings": "spectral", "fused": "whole", "kernels": "matrix"},
    {"beta": 0.5, "others": "base", "embeddings": "base", "stacks": "others"},
    {"beta": 0.5, "orientation": "input_first", "exempt": "attention.q mlp"},
    {"beta": 0.5, "rank_tolerance": 0.3},
    *({"beta": 0.5, **path} for path in PATHS),
]
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def subspace_boosting(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of task vectors with raised singular values."""
    how = with_preset(parameters, PRESETS)
    result = {}
    for name, base in family.base.items():
        place, tasks = family.places[name], family.deltas(name)
        weights = each(how, "weight", name, len(tasks))
        merged = sum(w * t for w, t in zip(weights, tasks, strict=True))
        if is_matrix(place, how):
            merged = put_together([_boosted(m, how) for m in cut(merged, place, how)], place, how)
        elif rule_of(place, how) == "base":
            merged = 0.0 * merged
        result[name] = base + shared(how, "lambda", name) * merged
    return result


def _boosted(matrix: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    left, values, right = directions(matrix, tolerance=how["rank_tolerance"])
    if not values.size:
        return matrix
    if how["share_of"] == "count":
        least = values[min(count(how["beta"], min(matrix.shape)), values.size - 1)]
    else:
        shares = np.cumsum(values) / values.sum()
        least = values[int(np.argmax(shares >= how["beta"] - 1e-12))]
    return matrix + (left * (np.maximum(values, least) - values)) @ right
