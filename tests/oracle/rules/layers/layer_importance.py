"""Weights per layer by the size of what experts changed there.

    theta^l = theta_0^l + lambda sum_i w_i^l tau_i^l;   w_i^l = (g_i c_i^l)^(1/T) / sum_j (g_j c_j^l)^(1/T)
    c_i^l = ||tau_i^l|| / ||theta_0^l|| over all tensors of layer l, scaled to sum to 1 over the layers

Outside of layers, and in a layer that nobody changed: g_i / sum_j g_j.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.depth import layer_changes, stacks_of
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "temperature": 1.0,
        "measure": "relative",
        "scale_by": "expert",
        "lambda": 1.0,
    }
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, 1.0, 2.0], "temperature": 0.4, "lambda": 0.8},
    {"measure": "norm", "scale_by": "none", "temperature": 3.0},
    {"scale_by": "none"},
    {"experts": 1},
]


def layer_importance(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Share every layer among the experts."""
    given = with_preset(parameters, PRESETS)
    number = len(family.experts)
    changes = {
        stack: [layer_changes(family, i, stack, given["measure"]) for i in range(number)]
        for stack in stacks_of(family)
    }
    merged = {}
    for name, place in family.places.items():
        weights = np.array(each(given, "weight", name, number), float)
        shares = weights / weights.sum()
        if place.layer is not None:
            found = changes[place.stack]
            sizes = [mine[place.layer] for mine in found]
            if given["scale_by"] == "expert":
                totals = [sum(mine.values()) for mine in found]
                sizes = [c / t if t > 0 else 0.0 for c, t in zip(sizes, totals, strict=True)]
            powers = (weights * sizes) ** (1 / given["temperature"])
            if powers.sum() > 0:
                shares = powers / powers.sum()
        change = sum(w * d for w, d in zip(shares, family.deltas(name), strict=True))
        merged[name] = family.base[name] + given["lambda"] * change
    return merged
