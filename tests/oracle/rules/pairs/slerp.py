"""SLERP (Shoemake, SIGGRAPH 1985) from the base (t = 0) to the expert (t = 1), whole tensors as vectors.

    c = <a, b> / (|a| |b|);   omega = arccos c;   theta = [sin((1 - t) omega) a + sin(t omega) b] / sin omega

mergekit interpolates straight where |c| > 0.9995.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.arcs import arc

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [
    {"t": 0.5},
    {"t": 0.3},
    {"t": 1.2},
    {"t": 0.3, "lerp_above": 0.98},
    {"preset": "mergekit", "t": 0.6},
]


def slerp(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Along the arc."""
    threshold = 0.9995 if parameters.get("preset") == "mergekit" else 1.0
    threshold = parameters.get("lerp_above", threshold)
    merged = {}
    for name, place in family.places.items():
        a, b = np.ravel(family.base[name]), np.ravel(family.experts[0][name])
        merged[name] = arc(a, b, parameters["t"], 0, threshold).reshape(place.shape)
    return merged
