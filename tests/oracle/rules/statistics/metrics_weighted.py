"""Metrics-Weighted Averaging (2025, arXiv:2504.18580), weights from one number per checkpoint.

power    w_i ~ L_i^-p (a loss), t_i^p (a score or step);      softmax  w_i ~ exp(-p L_i), exp(p t_i)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {"metric": [0.8, 1.7, 1.1]},
    {"metric": [0.8, 1.7, 1.1], "by": "score", "penalty": 2.5},
    {"metric": [100.0, 200.0, 400.0], "by": "step"},
    {"metric": [-0.8, 1.7, 0.0], "normalization": "softmax"},
    {"metric": [0.8, 1.7, 1.1], "by": "score", "normalization": "softmax", "penalty": 3.0},
    {"metric": [0.8, 1.7, 1.1], "penalty": 0.0},
]


def metrics_weighted(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The average with those weights."""
    given = {"by": "loss", "normalization": "power", "penalty": 1.0, **parameters}
    numbers = np.array(given["metric"])
    exponent = given["penalty"] * (-1 if given["by"] == "loss" else 1)
    powers = given["normalization"] == "power"
    weights = numbers**exponent if powers else np.exp(exponent * numbers)
    weights = weights / weights.sum()
    return {
        n: sum(w * e[n] for w, e in zip(weights, family.experts, strict=True))
        for n in family.places
    }
