"""TATR (ICLR 2025, arXiv:2501.15065) with the mean |gradient| of the base over each task's data.

    theta = theta_0 + lambda sum_i w_i tau_i, but theta_0 where Omega is among the floor(drop N) largest

N counts the elements of the model that have gradients; the others are all inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.trust import outside
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "gradients:absolute"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "drop": 0.01, "scope": "model", "lambda": 0.3}
}
VARIANTS: list[dict[str, Any]] = [
    {"drop": 0.2},
    {},
    {"drop": 0.15, "scope": "tensor", "weight": [0.5, 2.0, -1.0], "lambda": 1.0},
    {"drop": 0.0},
    {"drop": 1.0},
    {"experts": 1},
]


def tatr(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Task arithmetic inside the region."""
    how = with_preset(parameters, PRESETS)
    names = list(family.statistics[0])
    deltas = [{n: expert[n] - family.base[n] for n in names} for expert in family.experts]
    masks = outside(family.statistics, deltas, how["drop"], how["scope"])
    merged = {}
    for name, base in family.base.items():
        weights = each(how, "weight", name, len(family.experts))
        change = sum(w * d for w, d in zip(weights, family.deltas(name), strict=True))
        kept = np.where(masks.get(name, False), 0.0, change)
        merged[name] = base + shared(how, "lambda", name) * kept
    return merged
