"""NearSwap (alchemonaut, 2024, the model card of QuartetAnemoi-70B).

    lambda = min(t / |theta_1 - theta_0|, 1);   theta = (1 - lambda) theta_0 + lambda theta_1

mergekit takes at least 1e-6 for the difference in lambda.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
# A change of 1e-4 is a few thousand times what rounding to float32 makes of a weight.
TOLERANCE_FLOAT32 = 5e-4
VARIANTS: list[dict[str, Any]] = [
    {"t": 0.03},
    {},
    {"preset": "mergekit", "t": 0.02},
    {"t": 0.01, "smallest_difference": 0.05},
]


def nearswap(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Every weight towards the expert."""
    floor = 1e-6 if parameters.get("preset") == "mergekit" else 0.0
    given = {"t": 1e-4, "smallest_difference": floor, **parameters}
    merged = {}
    for name in family.places:
        (delta,) = family.deltas(name)
        difference = np.maximum(np.abs(delta), given["smallest_difference"])
        with np.errstate(divide="ignore"):
            share = np.minimum(given["t"] / difference, 1.0)
        merged[name] = family.base[name] + share * delta
    return merged
