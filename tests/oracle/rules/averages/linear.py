"""Weighted average of the experts.

theta = sum_i w_i theta_i / sum_i w_i, or without the divisor. Wortsman et al., ICML 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shared.values import each, with_preset

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

PRESETS = {"paper": {"weight": 1.0, "normalize": True}, "mergekit": {}}
VARIANTS = [
    {},
    {"weight": [0.5, 0.25, 2.0]},
    {"weight": [0.5, -0.25, 0.125], "normalize": False},
    {"preset": "mergekit", "weight": [1.0, 0.0, 3.0]},
    {"experts": 1},
]


def linear(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The average, tensor by tensor."""
    given = with_preset(parameters, PRESETS)
    merged = {}
    for name in family.places:
        weights = each(given, "weight", name, len(family.experts))
        total = sum(w * e[name] for w, e in zip(weights, family.experts, strict=True))
        merged[name] = total / sum(weights) if given["normalize"] else total
    return merged
