"""NuSLERP (mergekit, 2024): the arc between two experts, or between their task vectors.

    t = w_2 / (w_1 + w_2), 1/2 where the sum is below 1e-6

One vector is the whole tensor (flatten), each vector along the last axis, or each along the first (row_wise).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.arcs import arc
from ..shared.values import each

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 2
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [1.0, 3.0], "base": False},
    {"weight": [1.0, 3.0], "nuslerp_flatten": False},
    {"weight": [2.0, 1.0], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    {"weight": [1.0, -1.0]},
    {"preset": "mergekit", "weight": [1.0, 2.0]},
]


def nuslerp(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Along the arcs."""
    merged = {}
    for name, place in family.places.items():
        w = each({"weight": 1.0, **parameters}, "weight", name, 2)
        t = 0.5 if abs(sum(w)) < 1e-6 else w[1] / sum(w)
        based = parameters.get("base", True)
        origin = family.base[name] if based else 0.0
        a, b = (e[name] - origin for e in family.experts)
        if parameters.get("nuslerp_flatten", True) or len(place.shape) < 2:
            found = arc(np.ravel(a), np.ravel(b), t, 0).reshape(place.shape)
        else:
            found = arc(a, b, t, 0 if parameters.get("nuslerp_row_wise") else -1)
        merged[name] = origin + found
    return merged
