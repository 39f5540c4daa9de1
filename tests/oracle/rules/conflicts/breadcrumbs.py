"""Model Breadcrumbs (Davari and Belilovsky, ECCV 2024, arXiv:2312.06795).

    per tensor: drop the floor(gamma N) largest |tau_i|, keep the next floor(density N), drop the rest
    theta = theta_0 + lambda sum_i w_i tau^_i

Where fewer are left, fewer of the largest are dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import summed
from ..shared.order import count, largest
from ..shared.rescaling import rescaled
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "density": 0.14,
        "gamma": 0.01,
        "normalize": "none",
        "rescale": "none",
        "rescale_floor": 0.0,
        "lambda": 1.0,
    },
    "mergekit": {"density": 1.0, "rescale_floor": 1e-7},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.9, 1.0], "gamma": [0.1, 0.2, 0.05], "weight": [0.5, 1.0, -0.25]},
    {"density": 0.5, "gamma": 0.1, "rescale": "l1", "lambda": 0.6},
    {"density": 0.5, "gamma": 0.05, "normalize": "absolute", "weight": [0.5, 1.0, -0.25]},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5, "normalize": "signed"},
]
EQUAL = VARIANTS


def breadcrumbs(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of the middles."""
    given = with_preset(parameters, PRESETS)
    return summed(family, middles(family, given), given)


def middles(family: Family, given: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """The task vectors of each tensor without their largest and their small elements."""
    found: dict[str, list[np.ndarray]] = {}
    for name in family.places:
        number = len(family.experts)
        shares, outliers = each(given, "density", name, number), each(given, "gamma", name, number)
        found[name] = []
        for delta, share, gamma in zip(family.deltas(name), shares, outliers, strict=True):
            kept = count(share, delta.size)
            first = min(count(gamma, delta.size), delta.size - kept)
            mask = largest(delta, first + kept) & ~largest(delta, first)
            found[name].append(rescaled(delta, np.where(mask, delta, 0.0), 1.0, given))
    return found
