"""The layer-linear scaling of LiNeS (arXiv:2410.17146) on every task vector.

tau'_i = s_l tau_i;   s_l = alpha + beta l / (L - 1);   s = alpha outside of the blocks;   beta = 1 - alpha
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{"alpha": 0.3}, {"alpha": 0.5, "beta": -0.2}]


def scale_by_depth(family: Family, parameters: dict) -> Family:
    """Smaller changes near the input."""
    alpha = parameters["alpha"]
    beta = parameters.get("beta", 1 - alpha)
    experts = []
    for expert in family.experts:
        made = {}
        for name, place in family.places.items():
            scale = alpha
            if place.layer is not None:
                scale += beta * (place.layer / (place.layers - 1) if place.layers > 1 else 1.0)
            made[name] = family.base[name] + scale * (expert[name] - family.base[name])
        experts.append(made)
    return replace(family, experts=experts)
