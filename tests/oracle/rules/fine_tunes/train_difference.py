"""Train difference (supermerger's trainDifference, sd-mecha's train_difference_mask).

theta = A + 1.8 alpha (B - C) |B - A| / (|B - A| + |B - C|)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 2
VARIANTS: list[dict[str, Any]] = [{}, {"alpha": 0.4}, {"alpha": -0.7, "gain": 1.0}, {"alpha": 0}]


def train_difference(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Train A on what makes B of C."""
    factor = parameters.get("alpha", 1.0) * parameters.get("gain", 1.8)
    merged = {}
    for name in family.places:
        c, (a, b) = family.base[name], (expert[name] for expert in family.experts)
        with np.errstate(invalid="ignore"):
            share = np.nan_to_num(np.abs(b - a) / (np.abs(b - a) + np.abs(b - c)))
        merged[name] = a + factor * share * (b - c)
    return merged
