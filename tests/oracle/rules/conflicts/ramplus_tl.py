"""RAM+, tensor-local (Reinforced Agent Merging, 2026, arXiv:2601.13572).

rho_i = (shared elements of i) / max(unique elements of i, epsilon);   lambda_i = 1 + r clip(rho_i, 0, alpha)
theta = theta_0 + (lambda_i tau_i where only i is active, the mean of the active tau_i elsewhere)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {},
    {"epsilon": 0.05, "r": 0.5, "alpha": 3.0},
    {"preset": "mergekit", "epsilon": 0.04},
    {"experts": 1},
]
EQUAL = VARIANTS


def ramplus_tl(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Unique changes louder, shared ones averaged."""
    given = {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5, **parameters}
    merged = {}
    for name in family.places:
        deltas = np.stack(family.deltas(name))
        active = np.abs(deltas) > given["epsilon"]
        number = active.sum(axis=0)
        change = np.where(active, deltas, 0.0).sum(axis=0) / np.maximum(number, 1)
        for delta, mine in zip(deltas, active, strict=True):
            alone = mine & (number == 1)
            ratio = (mine & (number > 1)).sum() / max(alone.sum(), given["epsilon"])
            factor = 1 + given["r"] * np.clip(ratio, 0, given["alpha"])
            change = np.where(alone, factor * delta, change)
        merged[name] = family.base[name] + change
    return merged
