"""The expert itself, or a multiple of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

EXPERTS = 1
SKIPS = {"storage": "without a base a tensor is computed in the precision of its own dtype"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"scale": 0.75},
    {"scale": [-1.5]},
    {"preset": "mergekit", "scale": 0.5},
]


def passthrough(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """scale theta_1."""
    scale = parameters.get("scale", 1.0)
    factor = scale[0] if isinstance(scale, list) else scale
    return {n: factor * x for n, x in family.experts[0].items()}
