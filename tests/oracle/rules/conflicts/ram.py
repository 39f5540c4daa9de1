"""RAM (Reinforced Agent Merging, 2026, arXiv:2601.13572).

a_i = [|tau_i| > epsilon];   theta = theta_0 + sum_i a_i tau_i / max(sum_i a_i, 1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {},
    {"epsilon": 0.05},
    {"preset": "mergekit", "epsilon": 0.02},
    {"experts": 1, "epsilon": 0.03},
]
EQUAL = VARIANTS


def ram(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean of the changes that are no noise."""
    epsilon = parameters.get("epsilon", 1e-5)
    merged = {}
    for name in family.places:
        deltas = family.deltas(name)
        active = [np.abs(d) > epsilon for d in deltas]
        total = sum(np.where(a, d, 0.0) for a, d in zip(active, deltas, strict=True))
        merged[name] = family.base[name] + total / np.maximum(sum(map(np.int64, active)), 1)
    return merged
