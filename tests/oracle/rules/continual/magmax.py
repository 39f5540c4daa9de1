"""MagMax (Marczak et al., ECCV 2024, arXiv:2407.06322).

s = argmax_i |tau_i|  per element, the last of equals;   theta = theta_0 + lambda tau_s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"lambda": 1.0, "experts": 4}, {"experts": 1}]
EQUAL = VARIANTS


def magmax(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The largest change of every weight."""
    merged = {}
    for name in family.places:
        chosen = family.deltas(name)[0]
        for delta in family.deltas(name)[1:]:
            chosen = np.where(np.abs(delta) >= np.abs(chosen), delta, chosen)
        merged[name] = family.base[name] + parameters.get("lambda", 0.5) * chosen
    return merged
